"""TrainingConfig: everything that decides what comes out of a training run, one flat value equal to its YAML.
How it is carried out lives in session.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pytorch_quantizer.calibration.trainable import check_grids
from pytorch_quantizer.environment import named_device
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.training.kinds import check_kinds
from pytorch_quantizer.user_path import user_path

LEARNING_RATE, QAT_LEARNING_RATE = 0.1, 0.01
KEPT = ("last", "best")
LOWEST = {"epochs": 1, "batch_size": 1, "image_size": 1, "workers": 0, "threads": 1}
MOST_THREADS = 1024
NO_RECIPE = (
    "qat is of training with quantization, and no recipe says how to quantize: give --recipe NAME or FILE "
    "(in a config recipe:), or leave qat out to train in float"
)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to each training image.

    Attributes:
        shift: up to this many pixels in either direction.
        rotation: up to this many degrees either way.
        scaling: size between 1 − scaling and 1 + scaling.
        flip: mirror half of the images left to right.

    """

    shift: float = 0.0
    rotation: float = 0.0
    scaling: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        check_kinds(self, "augmentation.")
        if min(self.shift, self.rotation) < 0 or not 0 <= self.scaling < 1:
            raise InputError(f"augmentation needs shift, rotation >= 0 and scaling in [0, 1), got {self}")


@dataclass(frozen=True)
class Qat:
    """What is particular to training with quantization; how the optimizer's rates are meant is calibration/qat.py's.

    Attributes:
        grid_rate: the highest rate of scales, zero points, biases and norms; learning_rate is that of weights, in steps
            of their grids.
        norms: whether batch norms are kept while training and folded at the end; else they are folded before.
        distillation: share of the loss that comes from the float network's outputs, the rest from the labels.
        temperature: what logits are divided by for it.
        calibration_images: training images that the ranges to begin with are chosen from.
        grids: which estimator of gradients: lsq_plus learns scales, and the zero points of activations that a ReLU
            doesn't give (LSQ, Esser et al. 2020; LSQ+, Bhalgat et al. 2020); lsq learns scales alone; fixed leaves all
            grids as calibrated, and gradients go straight through rounding (Bengio et al. 2013). It needs norms off.

    """

    grid_rate: float = 0.002
    norms: bool = True
    distillation: float = 1.0
    temperature: float = 4.0
    calibration_images: int = 1024
    grids: str = "lsq_plus"

    def __post_init__(self) -> None:
        check_kinds(self, "qat.")
        check_grids(self.grids, norms=self.norms, prefix="qat.")
        for name in ("grid_rate", "temperature", "calibration_images"):
            if not getattr(self, name) > 0:
                raise InputError(f"qat.{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.distillation <= 1:
            raise InputError(f"qat.distillation must lie in [0, 1], got {self.distillation}")


@dataclass(frozen=True)
class TrainingConfig:
    """What is trained, on what, and how.

    Attributes:
        arch: a name that create_model knows.
        dataset: a name that load_dataset knows.
        data: the folder of the data set; digits needs none.
        download: fetch the data set into that folder first, where it isn't there, as torchvision does.
        checkpoint: weights to begin with, random ones unless given.
        recipe: quantization-aware training: a shipped recipe's name or a file, YAML or JSON; float training unless
            given.
        image_size: pixels of the square that the images are brought to; what the network usually reads unless given
            (a torchvision network 224 or more, whatever the data set).
        epochs: passes over the training images.
        keep: whose weights are written to output: those of the last epoch, or of the best, by accuracy on the
            validation images and of equals the earliest, which are written beside it (.best.safetensors) as well.
        resume: go on behind the last finished epoch of a run with the same settings that was interrupted; of one that
            is finished, train nothing and say so. false: train anew.
        batch_size: images a step.
        learning_rate: the highest; it rises over the warm-up and falls to 0 along a half cosine. 0.1 unless given, with
            a recipe 0.01.
        warmup_epochs: length of the linear rise.
        momentum: Nesterov's; with a recipe Adam takes its place.
        weight_decay: on weights of two dimensions and more; biases and batch norms are left alone. With a recipe none.
        ema: share of itself that an average of the weights keeps at each step, 0: no average. It is the average that is
            validated and written.
        bfloat16: compute forward and backward passes of training in bfloat16, where torch can.
        label_smoothing: share of the target spread over all classes.
        validation_fraction: share of the training split kept out and measured after each epoch; 0: none.
        augmentation: random changes to the training images.
        seed: decides the initial weights, the validation images, the order and the augmentation.
        device: where to train; the GPU if one works, unless said otherwise.
        qat: what is particular to training with a recipe; without one only the defaults.
        output: the safetensors file to write, runs/<dataset>_<arch>.safetensors unless given, with a recipe
            runs/<dataset>_<arch>_<recipe>.safetensors; what was measured goes beside it, ending in .json, and of each
            epoch in .epochs.csv; while it trains also what it needs to go on, ending in .state.safetensors.
        workers: loader processes; chosen by the data set unless given.
        tensorboard: folder for TensorBoard's event files: loss and scores of each epoch (extra [tensorboard]).
        mlflow: tracking URI of MLflow, sqlite:///FILE or a server's, for the same (extra [mlflow]).
        threads: CPU threads; torch's own choice unless given. Results repeat for equal counts.

    """

    arch: str = "resnet20"
    dataset: str = "digits"
    data: Path | None = None
    download: bool = False
    checkpoint: Path | None = None
    recipe: str | None = None
    image_size: int | None = None
    epochs: int = 60
    keep: str = "last"
    resume: bool = True
    batch_size: int = 64
    learning_rate: float | None = None
    warmup_epochs: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ema: float = 0.0
    bfloat16: bool = False
    label_smoothing: float = 0.0
    validation_fraction: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    device: str | None = None
    qat: Qat = field(default_factory=Qat)
    output: Path | None = None
    workers: int | None = None
    tensorboard: Path | None = None
    mlflow: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.recipe is None and self.qat != Qat():
            raise InputError(NO_RECIPE)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", LEARNING_RATE if self.recipe is None else QAT_LEARNING_RATE)
        for name, lowest in LOWEST.items():
            if getattr(self, name) is not None and getattr(self, name) < lowest:
                raise InputError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise InputError(f"threads must be at most {MOST_THREADS}, got {self.threads}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must lie in [0, 2^63), got {self.seed}")
        if not rate_of(self) > 0:
            raise InputError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.device is not None:
            named_device(self.device)
        if self.keep not in KEPT:
            raise InputError(f"keep must be one of {', '.join(KEPT)}, got {self.keep!r}")
        if self.keep == "best" and not self.validation_fraction:
            raise InputError("keep best needs validation images to tell by: set validation_fraction to 0.1, say")
        for name in ("momentum", "label_smoothing", "validation_fraction", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} can't be negative, got {getattr(self, name)}")
        if weights_path(self).suffix != ".safetensors":
            raise InputError(f"output must end in .safetensors, got {self.output}")


def rate_of(config: TrainingConfig) -> float:
    """Give the learning rate, which the config has set itself where it wasn't given."""
    return float("nan") if config.learning_rate is None else config.learning_rate


def weights_path(config: TrainingConfig) -> Path:
    """Give the file that the weights go to."""
    recipe = "" if config.recipe is None else f"_{Path(config.recipe).stem}"
    return config.output or Path("runs") / f"{config.dataset}_{config.arch}{recipe}.safetensors"


def best_path(config: TrainingConfig) -> Path:
    """Give the file that the best epoch's weights go to."""
    return weights_path(config).with_suffix(".best.safetensors")


def epochs_path(config: TrainingConfig) -> Path:
    """Give the table of what was measured after each epoch."""
    return weights_path(config).with_suffix(".epochs.csv")


def state_path(config: TrainingConfig) -> Path:
    """Give the file of what an interrupted run goes on from."""
    return weights_path(config).with_suffix(".state.safetensors")


def report_path(config: TrainingConfig) -> Path:
    """Give the file of what was measured in the end."""
    return weights_path(config).with_suffix(".json")


def written_paths(config: TrainingConfig) -> dict[str, Path]:
    """Give every file that training writes, by what it is."""
    return {
        "its weights": weights_path(config),
        "its report": report_path(config),
        "its best epoch": best_path(config),
        "its table of epochs": epochs_path(config),
        "its state": state_path(config),
    }


def require_kept(config: TrainingConfig, files: Iterable[Path] = (), page: Path | None = None) -> None:
    """Raise InputError where training or the page would write over what is read, config, checkpoint or recipe, and
    where both would write one file. files: those of the config. page: what --report writes.
    """
    written = written_paths(config)
    for name, path in written.items():
        if page is not None and page.resolve() == path.resolve():
            raise InputError(f"--report {page} is where training writes {name}: give another file, ending in .html")
    read = [("the config", file) for file in files]
    read += [(f"the {name}", getattr(config, name)) for name in ("checkpoint", "recipe")]
    written |= {} if page is None else {"the page of --report": page}
    for what, file in read:
        for name, path in written.items():
            if file is not None and _is_one_file(user_path(file), path):
                raise InputError(
                    f"{file}, {what}, would be lost: training to {weights_path(config)} writes {name} to {path}; "
                    f"give another --{'report' if path == page else 'output'}, or move {what} elsewhere"
                )


def _is_one_file(read: Path, written: Path) -> bool:
    return read.is_file() and written.is_file() and read.samefile(written)

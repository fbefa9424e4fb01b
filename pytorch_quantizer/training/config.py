"""TrainingConfig: everything that decides what comes out of a training run, one flat value equal to its YAML.
How it is carried out lives in float_training.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

from pytorch_quantizer.errors import InputError


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
        if min(self.shift, self.rotation) < 0 or not 0 <= self.scaling < 1:
            raise InputError(f"augmentation needs shift, rotation >= 0 and scaling in [0, 1), got {self}")


@dataclass(frozen=True)
class TrainingConfig:
    """What is trained, on what, and how.

    Attributes:
        arch: a name that create_model knows.
        dataset: a name that load_dataset knows.
        data: the folder of the data set; digits needs none.
        image_size: pixels of the square that the images are brought to; what the network usually reads unless given
            (a torchvision network 224 or more, whatever the data set).
        epochs: passes over the training images; the last one's weights are kept, nothing is selected.
        batch_size: images a step.
        learning_rate: the highest; it rises over the warm-up and falls to 0 along a half cosine.
        warmup_epochs: length of the linear rise.
        momentum: Nesterov's.
        weight_decay: on weights of two dimensions and more; biases and batch norms are left alone.
        label_smoothing: share of the target spread over all classes.
        validation_fraction: share of the training split kept out and measured after each epoch; 0: none.
        augmentation: random changes to the training images.
        seed: decides the initial weights, the validation images, the order and the augmentation.
        device: where to train; the GPU if one works, unless said otherwise.
        output: the safetensors file to write, runs/<dataset>_<arch>.safetensors unless given; what was measured goes
            beside it, ending in .json.
        workers: loader processes; chosen by the data set unless given.
        threads: CPU threads; torch's own choice unless given. Results repeat for equal counts.

    """

    arch: str = "resnet20"
    dataset: str = "digits"
    data: Path | None = None
    image_size: int | None = None
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 0.1
    warmup_epochs: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    validation_fraction: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    device: str | None = None
    output: Path | None = None
    workers: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must lie in [0, 2^63), got {self.seed}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be positive, got {self.learning_rate}")
        for name in ("momentum", "label_smoothing", "validation_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if min(self.weight_decay, self.warmup_epochs) < 0:
            raise InputError(f"weight_decay and warmup_epochs can't be negative, got {self}")
        if weights_path(self).suffix != ".safetensors":
            raise InputError(f"output must end in .safetensors, got {self.output}")


def weights_path(config: TrainingConfig) -> Path:
    """Give the file that the weights go to."""
    return config.output or Path("runs") / f"{config.dataset}_{config.arch}.safetensors"

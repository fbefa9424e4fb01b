"""Training a network, float or quantized: passes over the images, validation, files, all repeatable under a seed.
What learns, and how, is pupil.py's; what is kept on disk, saved.py's.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn
from torch.utils.data import Subset
from tqdm import tqdm

from pytorch_quantizer.atomic import atomic_path, require_writable, write_atomically
from pytorch_quantizer.data import ImageDataset, ImageLoader, load_dataset, make_loader
from pytorch_quantizer.data.download import download
from pytorch_quantizer.digests import file_digest
from pytorch_quantizer.environment import choose_device, machine, versions
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation import Evaluation, evaluate
from pytorch_quantizer.logbook import LogFlags, open_logbooks
from pytorch_quantizer.models import default_preprocessing
from pytorch_quantizer.repeatable import repeatable_kernels
from pytorch_quantizer.training.augmentation import augment
from pytorch_quantizer.training.config import (
    TrainingConfig,
    best_path,
    report_path,
    require_kept,
    state_path,
    weights_path,
)
from pytorch_quantizer.training.epoch_log import EXPERIMENT, EpochLog, log_training
from pytorch_quantizer.training.pupil import Pupil, make_pupil
from pytorch_quantizer.training.saved import identity_of, load_state, load_weights, save_state, save_weights
from pytorch_quantizer.user_warnings import warn_user


@dataclass
class Session:
    """A training run: what learns, on which images, what makes it the same run, and a record of each epoch done."""

    config: TrainingConfig
    identity: dict[str, Any]
    pupil: Pupil
    data: ImageDataset
    training: Subset[Any]
    validation: Subset[Any] | None
    history: list[dict[str, Any]]
    progress: bool


def train(config: TrainingConfig, *, progress: bool = True) -> dict[str, Any]:
    """Train as `config` says, write the network and the report beside it (.json), and return the report.

    After each epoch its state is written, from which the same call goes on after an interruption, to the same bytes as
    without; and the network of the best so far, by the validation images. After its end the same call trains again:
    finished_report tells whether there is anything to do. The test split is measured once, of what is written; nothing
    is chosen by it. Raises InputError for data or a device that isn't there, for a file that it reads and would write
    over, for a state of other settings or whose best network is gone, and for a loss that stops being a number. Warns
    of a warm-up that never ends.
    """
    start = time.perf_counter()
    _warn_of_warmup(config)
    require_kept(config)
    require_writable(weights_path(config))
    logbooks = open_logbooks(LogFlags(config.tensorboard, config.mlflow), EXPERIMENT)
    with _repeatable(config):
        data, test = load_split(config, "train"), load_split(config, "test")
        training, validation = split_validation(data, config.validation_fraction, config.seed)
        _check_keep(config, validation)
        pupil = make_pupil(config, data, training, progress)
        identity = identity_of(config, data)
        history = load_state(config, identity, pupil)
        session = Session(config, identity, pupil, data, training, validation, history, progress)
        _require_best(session)
        _run_epochs(session, log_training(config, session.history, logbooks))
        network = _chosen(session)
        measured = evaluate(network, make_loader(test, config.batch_size, workers=config.workers), progress=progress)
        report = _report(session, measured, time.perf_counter() - start)
    _save(session, network, report)
    return report


def split_validation(data: ImageDataset, fraction: float, seed: int) -> tuple[Subset[Any], Subset[Any] | None]:
    """Keep a seeded random share of the images out of training; (training, None) for a share of 0."""
    order = torch.randperm(len(data), generator=Generator().manual_seed(seed)).tolist()
    kept_out = round(len(data) * fraction)
    return Subset(data, order[kept_out:]), Subset(data, order[:kept_out]) if kept_out else None


def _warn_of_warmup(config: TrainingConfig) -> None:
    if config.warmup_epochs >= config.epochs:
        warn_user(
            f"warmup_epochs {config.warmup_epochs:g} of epochs {config.epochs}: the learning rate only rises, to less "
            f"than {config.learning_rate}; set warmup_epochs lower, or more epochs"
        )


def _check_keep(config: TrainingConfig, validation: Subset[Any] | None) -> None:
    if config.keep == "best" and validation is None:
        raise InputError(
            f"keep best needs validation images to tell by, and validation_fraction {config.validation_fraction} of "
            f"{config.dataset} is none: raise it"
        )


def _require_best(session: Session) -> None:
    """Raise InputError where the network of the best of the epochs that are done, which no state holds, is gone."""
    best = best_path(session.config)
    if session.history and session.validation is not None and not best.is_file():
        raise InputError(
            f"{best}, the best epoch so far of the interrupted run that {state_path(session.config)} is of, is gone: "
            "put it back to go on with that run, or --resume false to begin anew"
        )


def _run_epochs(session: Session, log: EpochLog) -> None:
    config, history = session.config, session.history
    desc = "train in float" if config.recipe is None else "train with quantization"
    how = {"desc": desc, "unit": "epoch", "disable": not session.progress, "leave": False}
    with tqdm(total=config.epochs, initial=len(history), **how) as bar:
        while len(history) < config.epochs:
            record: dict[str, Any] = {"epoch": len(history) + 1}
            record["loss"] = train_epoch(session)
            if session.validation is not None:
                record["validation"] = _validate(session, session.validation)
            history.append(record)
            save_state(config, session.identity, session.pupil, history)
            log.add(record)
            bar.set_postfix(_shown(record))
            bar.update()
    log.finish()


def train_epoch(session: Session) -> float:
    """Run one pass over the training images in a seeded order; return the mean loss."""
    config, pupil, epoch = session.config, session.pupil, len(session.history) + 1
    generator = Generator().manual_seed(config.seed * 100_003 + epoch)
    order = torch.randperm(len(session.training), generator=generator).tolist()
    # A last batch of a single image would have no variance to normalise by.
    loader = ImageLoader(session.training, order, config.batch_size, workers=config.workers, drop_last=True)
    device = next(pupil.model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    pupil.train_mode()
    bar = tqdm(loader, desc="epoch", unit="batch", disable=not session.progress, delay=1, leave=False)
    for images, labels in bar:
        total += pupil.learn(augment(images.to(device), config.augmentation, generator), labels.to(device))
    return _finite(config, float(total) / len(loader), epoch)


def _validate(session: Session, images: Subset[Any]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 on the validation images; the best network so far is written."""
    config, network = session.config, session.pupil.finished()
    loader = make_loader(images, config.batch_size, workers=config.workers)
    scores = _macro(evaluate(network, loader, progress=session.progress))
    if all(scores["accuracy"] > record["validation"]["accuracy"] for record in session.history):
        save_weights(network, best_path(config), config, session.data, epoch=len(session.history) + 1)
    return scores


def _chosen(session: Session) -> nn.Module:
    """The network of the last epoch, or that of the best, as the config says."""
    if session.config.keep == "last":
        return session.pupil.finished()
    device = choose_device(session.config.device)
    return load_weights(best_path(session.config), session.config, session.data).to(device)


def best_epoch(history: list[dict[str, Any]]) -> int | None:
    """The number of the epoch of highest accuracy on validation images, of equals the first; None without any."""
    if not history or "validation" not in history[0]:
        return None
    number: int = max(history, key=lambda record: (record["validation"]["accuracy"], -record["epoch"]))["epoch"]
    return number


def load_split(config: TrainingConfig, split: str) -> ImageDataset:
    """The images of a split as the network sees them, fetched first where the config says so."""
    if config.download:
        download(config.dataset, config.data)
    preprocessing = default_preprocessing(config.arch, config.dataset, config.image_size)
    return load_dataset(config.dataset, config.data, split=split, preprocessing=preprocessing)


@contextmanager
def _repeatable(config: TrainingConfig) -> Iterator[None]:
    """Ask torch for repeatable kernels, and for the configured threads, until training is over."""
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or threads)
    try:
        with repeatable_kernels():
            yield
    finally:
        torch.set_num_threads(threads)


def _finite(config: TrainingConfig, loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        state_path(config).unlink(missing_ok=True)  # the same would come of it again
        raise InputError(
            f"training diverged in epoch {epoch}: the loss is {loss}; lower learning_rate {config.learning_rate}"
        )
    return loss


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {name: value for name, value in evaluation.as_dict().items() if name != "agreement"}


def _macro(evaluation: Evaluation) -> dict[str, float]:
    scores = {name: getattr(evaluation, name)["macro"] for name in ("precision", "recall", "f1")}
    return {"accuracy": evaluation.top1, **scores}


def _shown(record: dict[str, Any]) -> dict[str, str]:
    numbers = {"loss": record["loss"], **record.get("validation", {})}
    return {name: f"{value:.4f}" for name, value in numbers.items()}


def _report(session: Session, measured: Evaluation, seconds: float) -> dict[str, Any]:
    config, best = session.config, best_epoch(session.history)
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return {
        "config": settings | {"output": str(weights_path(config))},
        "test": _numbers(measured),
        "epochs": session.history,
        "best_epoch": best,
        "written_epoch": best if config.keep == "best" else len(session.history),
        "seconds": round(seconds, 1),
        "identity": session.identity,
        "versions": versions(),
        "machine": machine(choose_device(config.device)),
    }


def _save(session: Session, network: nn.Module, report: dict[str, Any]) -> None:
    """Write what is to stay, and remove the state, which has served."""
    config, path = session.config, weights_path(session.config)
    if config.keep == "best":
        _copy(best_path(config), path)
    else:
        test = {name: report["test"][name] for name in ("samples", "top1")}
        save_weights(network, path, config, session.data, test=test)
    report["weights_sha256"] = file_digest(path)
    write_atomically(report_path(config), (json.dumps(report, indent=1) + "\n").encode())
    state_path(config).unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)

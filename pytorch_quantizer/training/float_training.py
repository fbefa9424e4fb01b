"""Training a float network: SGD with Nesterov momentum, warm-up and a cosine, repeatable under a seed.
Training a quantized one lives in calibration/.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Generator, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Subset
from tqdm import tqdm

from pytorch_quantizer.atomic import atomic_path, require_writable, write_atomically
from pytorch_quantizer.data import ImageDataset, ImageLoader, load_dataset, make_loader
from pytorch_quantizer.environment import choose_device, machine, versions
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation import Evaluation, evaluate
from pytorch_quantizer.models import create_model, default_preprocessing
from pytorch_quantizer.training.augmentation import augment
from pytorch_quantizer.training.config import TrainingConfig, weights_path


@dataclass
class TrainingState:
    """Everything that changes while training. An epoch's order and augmentation follow from the seed and its number."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    epoch: int  # epochs done
    history: list[dict[str, Any]]  # one record an epoch


def train(config: TrainingConfig, *, progress: bool = True) -> dict[str, Any]:
    """Train as `config` says, write the weights and the report beside them (.json), and return the report.

    The test split is measured once, with the last epoch's weights; nothing is chosen by it. Raises InputError for
    data or a device that isn't there, and for a loss that stops being a number.
    """
    start = time.perf_counter()
    require_writable(weights_path(config))
    with _repeatable(config):
        data, test = _load_split(config, "train"), _load_split(config, "test")
        training, validation = split_validation(data, config.validation_fraction, config.seed)
        state = _new_state(config, data, len(training))
        _run_epochs(config, state, training, validation, progress)
        measured = evaluate(
            state.model, make_loader(test, config.batch_size, workers=config.workers), progress=progress
        )
        report = _report(config, state, measured, time.perf_counter() - start)
    _save(config, state.model, data, report)
    return report


def split_validation(data: ImageDataset, fraction: float, seed: int) -> tuple[Subset[Any], Subset[Any] | None]:
    """Keep a seeded random share of the images out of training; (training, None) for a share of 0."""
    order = torch.randperm(len(data), generator=Generator().manual_seed(seed)).tolist()
    kept_out = round(len(data) * fraction)
    return Subset(data, order[kept_out:]), Subset(data, order[:kept_out]) if kept_out else None


def _run_epochs(
    config: TrainingConfig, state: TrainingState, training: Subset[Any], validation: Subset[Any] | None, progress: bool
) -> None:
    bar = tqdm(total=config.epochs, initial=state.epoch, desc="train", unit="epoch", disable=not progress)
    with bar:
        while state.epoch < config.epochs:
            record: dict[str, Any] = {"epoch": state.epoch + 1}
            record["loss"] = train_epoch(config, state, training, progress)
            if validation is not None:
                loader = make_loader(validation, config.batch_size, workers=config.workers)
                record["validation"] = _macro(evaluate(state.model, loader, progress=progress))
            state.epoch += 1
            state.history.append(record)
            bar.set_postfix(_shown(record))
            bar.update()


def train_epoch(config: TrainingConfig, state: TrainingState, training: Subset[Any], progress: bool = True) -> float:
    """Run one pass over the training images in a seeded order; return the mean loss."""
    generator = Generator().manual_seed(config.seed * 100_003 + state.epoch + 1)
    order = torch.randperm(len(training), generator=generator).tolist()
    # A last batch of a single image would have no variance to normalise by.
    loader = ImageLoader(training, order, config.batch_size, workers=config.workers, drop_last=True)
    device = next(state.model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    state.model.train()
    for images, labels in tqdm(loader, desc="epoch", unit="batch", disable=not progress, delay=1, leave=False):
        images = augment(images.to(device), config.augmentation, generator)
        loss = F.cross_entropy(state.model(images), labels.to(device), label_smoothing=config.label_smoothing)
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.scheduler.step()
        total += loss.detach()
    return _finite(float(total) / len(loader), state.epoch + 1)


def learning_rate_factor(step: int, *, warmup_steps: float, steps: int) -> float:
    """Give the share of the highest rate at a step: a linear rise over the warm-up, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / max(1.0, steps - warmup_steps))))


def _new_state(config: TrainingConfig, data: ImageDataset, images: int) -> TrainingState:
    steps_an_epoch = images // config.batch_size
    if not steps_an_epoch:
        raise InputError(f"batch_size {config.batch_size} is more than the {images} training images: lower it")
    torch.manual_seed(config.seed)
    model = create_model(config.arch, num_classes=data.num_classes, in_channels=data.in_channels).to(
        choose_device(config.device)
    )
    optimizer = SGD(
        _parameter_groups(model, config.weight_decay),
        config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
    )
    warmup, steps = config.warmup_epochs * steps_an_epoch, config.epochs * steps_an_epoch
    scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(step, warmup_steps=warmup, steps=steps))
    return TrainingState(model, optimizer, scheduler, epoch=0, history=[])


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _load_split(config: TrainingConfig, split: str) -> ImageDataset:
    preprocessing = default_preprocessing(config.arch, config.dataset, config.image_size)
    return load_dataset(config.dataset, config.data, split=split, preprocessing=preprocessing)


@contextmanager
def _repeatable(config: TrainingConfig) -> Iterator[None]:
    """Ask torch for repeatable kernels, and for the configured threads, until training is over."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(config.threads or threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.set_num_threads(threads)


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise InputError(f"training diverged in epoch {epoch}: the loss is {loss}; lower the learning rate")
    return loss


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {name: value for name, value in evaluation.as_dict().items() if name != "agreement"}


def _macro(evaluation: Evaluation) -> dict[str, float]:
    scores = {name: getattr(evaluation, name)["macro"] for name in ("precision", "recall", "f1")}
    return {"accuracy": evaluation.top1, **scores}


def _shown(record: dict[str, Any]) -> dict[str, str]:
    numbers = {"loss": record["loss"], **record.get("validation", {})}
    return {name: f"{value:.4f}" for name, value in numbers.items()}


def _report(config: TrainingConfig, state: TrainingState, measured: Evaluation, seconds: float) -> dict[str, Any]:
    settings = asdict(config) | {
        "output": str(weights_path(config)),
        "data": None if config.data is None else str(config.data),
    }
    return {
        "config": settings,
        "test": _numbers(measured),
        "epochs": state.history,
        "seconds": round(seconds, 1),
        "versions": versions(),
        "machine": machine(choose_device(config.device)),
    }


def _save(config: TrainingConfig, model: nn.Module, data: ImageDataset, report: dict[str, Any]) -> None:
    about = {
        "arch": config.arch,
        "dataset": config.dataset,
        "num_classes": data.num_classes,
        "in_channels": data.in_channels,
        "test": {name: report["test"][name] for name in ("samples", "top1")},
    }
    # One key: safetensors writes several in an order that changes from run to run, and equal runs give equal files.
    metadata = {"training": json.dumps(about)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(weights_path(config)) as temporary:
        save_file(tensors, temporary, metadata=metadata)
    write_atomically(weights_path(config).with_suffix(".json"), (json.dumps(report, indent=1) + "\n").encode())

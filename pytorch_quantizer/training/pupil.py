"""Pupil: a network under training with its optimizer, its loss and its running average, float or quantized.
The passes over images are run.py's, what is kept of them saved.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from math import cos, pi
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from pytorch_quantizer.calibration.qat import Student
from pytorch_quantizer.data import ImageDataset, calibration_loader
from pytorch_quantizer.environment import choose_device
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.layouts import needs_channels_first
from pytorch_quantizer.models import create_model
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.training.average import Average
from pytorch_quantizer.training.config import TrainingConfig, rate_of

EPSILON = 1e-12  # Adam's: gradients of steps are scaled by LSQ's 1/√(N·qmax), far below what its 1e-8 is made for
BETAS = 0.9, 0.99


@dataclass
class Pupil:
    """Everything that changes while training, and how.

    model: what learns. loss: of images and labels. train_mode: puts the model in its training mode. finish: makes the
    network that is evaluated and written of a model like ``model``. average: None where none is kept.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    train_mode: Callable[[], object]
    finish: Callable[[nn.Module], nn.Module]
    optimizer: Optimizer
    scheduler: LambdaLR
    average: Average | None
    bfloat16: bool

    def learn(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step on a batch; the loss before it."""
        kind = images.device.type
        barred = kind == "cpu" and any(map(needs_channels_first, self.model.modules()))
        if self.bfloat16 and images.dim() == 4 and not barred:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(kind, torch.bfloat16) if self.bfloat16 else nullcontext():
            loss = self.loss(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        if self.average is not None:
            self.average.update()
        return loss.detach()

    def finished(self) -> nn.Module:
        """The network as it would be written now, in eval mode."""
        model = self.model if self.average is None else self.average.averaged
        return self.finish(model.eval()).eval()


def make_pupil(config: TrainingConfig, data: ImageDataset, training: Dataset[Any], progress: bool) -> Pupil:
    """A network as the config says, before its first step. training: those of the images of data that it is to learn.

    Raises InputError for a network, a recipe or a device that can't be had.
    """
    images = len(training)  # type: ignore[arg-type]
    if images < config.batch_size:
        raise InputError(f"batch_size {config.batch_size} is more than the {images} training images: lower it")
    torch.manual_seed(config.seed)
    model = create_model(
        config.arch, num_classes=data.num_classes, in_channels=data.in_channels, checkpoint=config.checkpoint
    ).to(choose_device(config.device))
    if config.recipe is None:
        parts = _float_parts(config, model)
    else:
        parts = _quantized_parts(config, model, training, progress)
    steps = config.epochs * (images // config.batch_size)
    warmup = config.warmup_epochs * (images // config.batch_size)
    scheduler = LambdaLR(parts.optimizer, lambda step: learning_rate_factor(step, warmup_steps=warmup, steps=steps))
    average = Average(parts.model, config.ema) if config.ema else None
    return Pupil(*parts, scheduler, average, config.bfloat16)


def learning_rate_factor(step: int, *, warmup_steps: float, steps: int) -> float:
    """Give the share of the highest rate at a step: a linear rise over the warm-up, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 0.5 * (1 + cos(pi * min(1.0, (step - warmup_steps) / max(1.0, steps - warmup_steps))))


class _Parts(NamedTuple):
    """What float and quantized networks differ in; see Pupil."""

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    train_mode: Callable[[], object]
    finish: Callable[[nn.Module], nn.Module]
    optimizer: Optimizer


def _float_parts(config: TrainingConfig, model: nn.Module) -> _Parts:
    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)

    momentum = config.momentum
    groups = _float_groups(model, config.weight_decay)
    optimizer = SGD(groups, rate_of(config), momentum=momentum, nesterov=momentum > 0)
    return _Parts(model, loss, model.train, lambda trained: trained, optimizer)


def _quantized_parts(config: TrainingConfig, model: nn.Module, training: Dataset[Any], progress: bool) -> _Parts:
    if config.checkpoint is None:
        raise InputError("training with a recipe begins with a trained network: give --checkpoint FILE")
    assert config.recipe is not None
    qat, device = config.qat, choose_device(config.device)
    batches = calibration_loader(training, qat.calibration_images, batch_size=config.batch_size, seed=config.seed)
    recipe = Recipe.load(config.recipe)
    calibration = [images.to(device) for images, _ in batches]
    student = Student.from_model(model, recipe, calibration, norms=qat.norms, grids=qat.grids, progress=progress)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return student.loss(
            images,
            labels,
            distillation=qat.distillation,
            temperature=qat.temperature,
            smoothing=config.label_smoothing,
        )

    def finish(learned: nn.Module) -> nn.Module:
        assert isinstance(learned, fx.GraphModule)
        return student.hardened(learned)

    optimizer = Adam(student.groups(rate_of(config), qat.grid_rate), betas=BETAS, eps=EPSILON)
    return _Parts(student.learned, loss, student.train_mode, finish, optimizer)


def _float_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]

"""End-to-end tuning: scales, biases and steps of a simulated model learned from the float network's outputs, in place.
On request weights learn, too, from the codes that they have. Learning from labels, and from more images than
calibration has, is qat.py's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, fx
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from pytorch_quantizer.calibration.activation_cache import Rows
from pytorch_quantizer.calibration.calibrate import device_of
from pytorch_quantizer.calibration.learned_steps import LearnedStep
from pytorch_quantizer.calibration.lesson import Lesson, Selection, block_outputs, mirrored
from pytorch_quantizer.calibration.trainable import LearnedLayer, make_trainable, write_back
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.repeatable import repeatable_kernels

EPSILON = 1e-12  # Adam's: gradients of steps are scaled by LSQ's 1/√(N·qmax), far below what its 1e-8 is made for


@dataclass(frozen=True)
class Tuned:
    """before, after: what tuning lessens, over all images. kept: whether it fell, so that the model has what was
    learned. weights: whether there were weights that learned.
    """

    before: float
    after: float
    kept: bool
    weights: bool = False


def tune(
    model: QuantizedModel,
    graph: fx.GraphModule,
    images: Rows,
    *,
    epochs: int = 10,
    learning_rate: float = 0.01,
    batch_size: int = 32,
    block_weight: float = 0.0,
    mirror: bool = False,
    seed: int = 0,
    weight_rate: float = 0.0,
    progress: bool = True,
) -> Tuned:
    """Learn every weight's scale, every bias and every activation's step by distillation from ``graph``, in place.

    graph: the folded float network. images: of calibration (activation_cache.rows_of makes them of batches). Adam
    lessens the squared distance of the outputs (logits), and with ``block_weight`` also of the blocks' outputs
    (reconstruction's blocks), its rate, relative to the size of what is learned, falling to zero along a cosine.
    mirror: images are turned left to right half of the time. weight_rate: where it isn't 0, weights on uniform grids
    learn by straight-through, too, at this rate in steps of their grids: from their float values where these round to
    the codes that were chosen, and otherwise from the nearest that do, which a step of 0.01 takes to another code:
    rates are best far below. With 0, and for weights that are float, allocated, shifted by a correction, recurrent or
    on other grids, codes stay as they are.
    What came of it is taken where that distance, over all images (and all of them turned), fell in the model as it is
    stored. No images are held out to tell: what chose the weights before has mostly seen them all, so that they would
    speak for the model as it was. A network in which nothing can learn stays as it is.
    Repeats to the bit for equal thread counts.
    Raises InputError for no images, and for mirroring what isn't [N, C, H, W].
    """
    if mirror and len(images.shape) != 3:
        raise InputError(f"tuning_mirror is for images [C, H, W], got {list(images.shape)}: leave it out")
    if not images.written:
        raise InputError("tuning learns on images, got none")
    seen = Selection(images, device_of(model))
    course = _Course(epochs, learning_rate, weight_rate, batch_size, mirror, seed)
    with repeatable_kernels():
        lesson = Lesson(graph, block_outputs(model, graph), block_weight)
        learned = make_trainable(model, graph if weight_rate else None)
        if not _groups(learned, course):
            distance = lesson.mean_loss(model, seen, batch_size, mirror)
            return Tuned(distance, distance, kept=False)
        weights = any(getattr(module, "latent", None) is not None for module in learned.modules())
        for _ in tqdm(_passes(learned, lesson, seen, course), "tuning", epochs, leave=False, disable=not progress):
            pass
        trial = deepcopy(model)
        write_back(learned, trial)
        before, after = (lesson.mean_loss(network, seen, batch_size, mirror) for network in (model, trial))
        if after < before:
            write_back(learned, model)
    return Tuned(before, after, after < before, weights)


class _Course(NamedTuple):
    epochs: int
    rate: float
    weight_rate: float
    batch_size: int
    mirror: bool
    seed: int


def _passes(learned: fx.GraphModule, lesson: Lesson, images: Selection, course: _Course) -> Iterator[None]:
    """Train, pausing after each pass over the images."""
    network = lesson.with_values(learned).eval()
    optimizer, generator = Adam(_groups(learned, course), eps=EPSILON), Generator().manual_seed(course.seed)
    schedule = CosineAnnealingLR(optimizer, course.epochs * -(-len(images) // course.batch_size))
    for _ in range(course.epochs):
        for which in torch.randperm(len(images), generator=generator).split(course.batch_size):
            seen = images[which]
            loss = lesson.loss(network, mirrored(seen, generator) if course.mirror else seen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        yield


def _groups(learned: fx.GraphModule, course: _Course) -> list[dict[str, Any]]:
    """What learns, each with its rate: of scales' logarithms as it is, of weights in steps, of others by their size."""
    rate = course.rate
    groups: list[dict[str, Any]] = []
    for module in learned.modules():
        if isinstance(module, LearnedStep):
            groups.append({"params": [module.growth], "lr": rate})
            if module.offset is not None:
                groups.append({"params": [module.offset], "lr": rate * (module.qmax - module.qmin)})
        elif isinstance(module, LearnedLayer):
            groups.append({"params": [p for p in [module.log_gain] if p is not None], "lr": rate})
            groups.append({"params": [p for p in [module.latent] if p is not None], "lr": course.weight_rate})
            if module.bias is not None:
                size = float(module.bias.detach().abs().mean())
                groups.append({"params": [module.bias], "lr": rate * (size or 1.0)})
    return [group for group in groups if group["params"]]

"""End-to-end tuning: scales, biases and steps of a simulated model learned from the float network's outputs, in place.
Weights keep their codes, so that it can follow whatever chose them; training these too is qat.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Generator, fx, nn
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

HELD_OUT = 8  # one image of so many is not learned from: it tells whether to keep what was learned
EPSILON = 1e-12  # Adam's: gradients of steps are scaled by LSQ's 1/√(N·qmax), far below what its 1e-8 is made for


@dataclass(frozen=True)
class Tuned:
    """before, after: mean squared distance from the float network's outputs on the images held out, in units of their
    mean square. kept: whether it fell, so that the model has what was learned.
    """

    before: float
    after: float
    kept: bool


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
    progress: bool = True,
) -> Tuned:
    """Learn every weight's scale, every bias and every activation's step by distillation from ``graph``, in place.

    graph: the folded float network. images: of calibration (activation_cache.rows_of makes them of batches). Adam
    lessens the squared distance of the outputs (logits), and with ``block_weight`` also of the blocks' outputs
    (reconstruction's blocks), its rate, relative to the size of what is learned, falling along a cosine. mirror: images
    are turned left to right half of the time. One image of HELD_OUT, drawn by the seed, is held out: the epoch that is
    best on these, by the outputs alone, is taken, and none where the model, as it is stored, didn't gain. Repeats to
    the bit for equal thread counts.
    Raises InputError for images that are too few, and for mirroring what isn't [N, C, H, W].
    """
    if mirror and len(images.shape) != 3:
        raise InputError(f"tuning_mirror is for images [C, H, W], got {list(images.shape)}: leave it out")
    learned_from, held = _split(images, seed, device_of(model))
    with repeatable_kernels():
        lesson = Lesson(graph, block_outputs(model, graph), block_weight)
        learned = make_trainable(model)
        passes = _learn(learned, lesson, learned_from, _Course(epochs, learning_rate, batch_size, mirror, seed))
        bar = tqdm(passes, "tuning", epochs, leave=False, disable=not progress)
        learned.load_state_dict(_best(learned, partial(lesson.distance, images=held, batch_size=batch_size), bar))
        trial = deepcopy(model)
        write_back(learned, trial)
        before, after = (lesson.distance(network, held, batch_size) for network in (model, trial))
        if after < before:
            write_back(learned, model)
    return Tuned(before, after, after < before)


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Ask torch for kernels that repeat to the bit, as far as there are such."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class _Course(NamedTuple):
    epochs: int
    rate: float
    batch_size: int
    mirror: bool
    seed: int


def _learn(learned: fx.GraphModule, lesson: Lesson, images: Selection, course: _Course) -> Iterator[None]:
    """Train, pausing after each pass over the images."""
    network = lesson.with_values(learned).eval()
    optimizer, generator = Adam(_groups(learned, course.rate), eps=EPSILON), Generator().manual_seed(course.seed)
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


def _best(learned: fx.GraphModule, distance_of: Callable[[nn.Module], float], passes: Iterable[None]) -> dict[str, Any]:
    """The state after that pass after which the distance is least."""
    reached, best = float("inf"), deepcopy(learned.state_dict())
    for _ in passes:
        distance = distance_of(learned)
        if distance < reached:
            reached, best = distance, deepcopy(learned.state_dict())
    return best


def _groups(learned: fx.GraphModule, rate: float) -> list[dict[str, Any]]:
    """What learns, each with its rate: of logarithms of scales as it is, of others by their size."""
    groups: list[dict[str, Any]] = []
    for module in learned.modules():
        if isinstance(module, LearnedStep):
            groups.append({"params": [module.growth], "lr": rate})
            if module.offset is not None:
                groups.append({"params": [module.offset], "lr": rate * (module.qmax - module.qmin)})
        elif isinstance(module, LearnedLayer):
            groups.append({"params": [p for p in [module.log_gain] if p is not None], "lr": rate})
            if module.bias is not None:
                size = float(module.bias.detach().abs().mean())
                groups.append({"params": [module.bias], "lr": rate * (size or 1.0)})
    return [group for group in groups if group["params"]]


def _split(images: Rows, seed: int, device: torch.device) -> tuple[Selection, Selection]:
    """(images to learn from, images held out)."""
    count = images.written
    if count < HELD_OUT:
        raise InputError(f"tuning needs at least {HELD_OUT} images, got {count}")
    order = torch.randperm(count, generator=Generator().manual_seed(seed))
    parts = order[count // HELD_OUT :], order[: count // HELD_OUT]
    return Selection(images, parts[0], device), Selection(images, parts[1], device)

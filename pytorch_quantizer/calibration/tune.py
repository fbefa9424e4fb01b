"""End-to-end tuning: scales, biases and steps of a simulated model learned from the float network's outputs, in place.
Weights keep their codes, so that it can follow whatever chose them; training these too is qat.py's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, fx, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from pytorch_quantizer.calibration.learned_steps import LearnedStep
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
    batches: list[Tensor],
    *,
    epochs: int = 10,
    learning_rate: float = 0.01,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Tuned:
    """Learn every weight's scale, every bias and every activation's step by distillation from ``graph``, in place.

    graph: the folded float network. batches: images [N, …] of one size. Adam lessens the squared distance of the
    outputs (logits), its rate, relative to the size of what is learned, falling along a cosine. One image of HELD_OUT,
    drawn by the seed, is held out: the epoch that is best on these is taken, and none where the model, as it is
    stored, didn't gain. Repeats to the bit for equal thread counts.
    Raises InputError for images that are too few or of several sizes.
    """
    images, held = _split(batches, seed)
    with repeatable_kernels():
        lesson, test = _Lesson(graph, images, batch_size), _Lesson(graph, held, batch_size)
        learned = make_trainable(model)
        passes = _learn(learned, lesson, epochs, learning_rate, seed)
        learned.load_state_dict(_best(learned, test, tqdm(passes, "tuning", epochs, leave=False, disable=not progress)))
        trial = deepcopy(model)
        write_back(learned, trial)
        before, after = test.distance(model), test.distance(trial)
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


class _Lesson:
    """Images [N, …], and what the float network gives for them."""

    def __init__(self, graph: nn.Module, images: Tensor, batch_size: int) -> None:
        self.images, self.batch_size = images, batch_size
        with torch.no_grad():
            batches = [_tensors(graph(part.clone())) for part in images.split(batch_size)]
        self.wanted = [torch.cat(parts) for parts in zip(*batches, strict=True)]

    def loss(self, model: nn.Module, which: Tensor) -> Tensor:
        """Mean squared difference of the outputs for some images, in units of the outputs' mean square."""
        losses = [
            (output - wanted[which]).square().mean() / wanted.square().mean().clamp(min=torch.finfo().tiny)
            for output, wanted in zip(_tensors(model(self.images[which])), self.wanted, strict=True)
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def distance(self, model: nn.Module) -> float:
        """The same over all images."""
        parts = torch.arange(len(self.images)).split(self.batch_size)
        return sum(float(self.loss(model, which)) * len(which) for which in parts) / len(self.images)


def _learn(learned: fx.GraphModule, lesson: _Lesson, epochs: int, rate: float, seed: int) -> Iterator[None]:
    """Train, pausing after each pass over the images."""
    optimizer, generator = Adam(_groups(learned, rate), eps=EPSILON), Generator().manual_seed(seed)
    images = len(lesson.images)
    schedule = CosineAnnealingLR(optimizer, epochs * -(-images // lesson.batch_size))
    for _ in range(epochs):
        for which in torch.randperm(images, generator=generator).split(lesson.batch_size):
            loss = lesson.loss(learned, which)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        yield


def _best(learned: fx.GraphModule, test: _Lesson, passes: Iterable[None]) -> dict[str, Any]:
    """The state after that pass after which the distance is least."""
    reached, best = float("inf"), deepcopy(learned.state_dict())
    for _ in passes:
        distance = test.distance(learned)
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


def _split(batches: list[Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """(images to learn from, images held out)."""
    sizes = {tuple(batch.shape[1:]) for batch in batches}
    if len(sizes) > 1:
        raise InputError(f"tuning needs images of one size, got {', '.join(str(list(size)) for size in sorted(sizes))}")
    count = sum(len(batch) for batch in batches)
    if count < HELD_OUT:
        raise InputError(f"tuning needs at least {HELD_OUT} images, got {count}")
    images = torch.cat(batches)
    order = torch.randperm(count, generator=Generator().manual_seed(seed))
    return images[order[count // HELD_OUT :]], images[order[: count // HELD_OUT]]


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

"""Quantization-aware training: a QuantizedModel whose weights, scales, biases and steps learn by straight-through.
The loop over images, its schedule and its files are training/'s; what learns without labels is tune.py's.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pytorch_quantizer.calibration.trainable import batch_norms, check_grids, make_trainable, write_back
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.equalize import equalize
from pytorch_quantizer.graph.fold import fold
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.ties import move_off_ties
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantize import quantize

NOTES = {
    "lsq_plus": "quantization-aware training: weights, their scales, biases and activations' steps are learned",
    "lsq": "quantization-aware training: weights, their scales, biases and activations' scales are learned",
    "fixed": "quantization-aware training: weights and biases are learned, grids are as calibrated",
}


@dataclass(frozen=True)
class Student:
    """A quantized model under training.

    start: as it was quantized, which stays so. learned: its trainable copy (trainable.py). teacher: the folded float
    network, which doesn't learn. grids: what of the grids learns, as make_trainable has it.
    """

    start: QuantizedModel
    learned: fx.GraphModule
    teacher: fx.GraphModule
    grids: str = "lsq_plus"

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        recipe: Recipe,
        calibration: Iterable[Any],
        *,
        norms: bool = False,
        grids: str = "lsq_plus",
        progress: bool = True,
    ) -> Student:
        """Quantize a trained float network as quantize() does, and let it learn from there.

        norms: whether layers get batch norms again, which are folded at the end; else they stay folded all along.
        grids: lsq_plus, lsq or fixed, see make_trainable. Raises InputError as quantize() and check_grids do, and where
        no weight has a uniform grid to learn on.
        """
        check_grids(grids, norms=norms)
        batches = list(calibration)
        start = quantize(model, recipe, batches, progress=progress)
        teacher = _float_graph(model, start.recipe, batches[0])
        learned = make_trainable(start, teacher, norms=norms, grids=grids)
        if not any(name.endswith("latent") for name, _ in learned.named_parameters()):
            raise InputError(
                f"recipe {recipe.name!r} leaves no weight on a uniform grid to train: set weights to int4 or the like"
            )
        return cls(start, learned, teacher.requires_grad_(requires_grad=False), grids)

    def groups(self, rate: float, grid_rate: float) -> list[dict[str, Any]]:
        """What learns, for an optimizer like Adam. rate: of weights, in steps of their grids; grid_rate: of the rest.

        That is the logarithms of scales, zero points, biases and norms.
        """
        named = [(name, p) for name, p in self.learned.named_parameters() if p.requires_grad]
        latents = [p for name, p in named if name.endswith("latent")]
        others = [p for name, p in named if not name.endswith("latent")]
        return [{"params": latents, "lr": rate}, {"params": others, "lr": grid_rate}]

    def train_mode(self) -> None:
        """Let the norms normalise by the batch; nothing else of a folded network has a mode that learning needs."""
        self.learned.eval()
        for norm in batch_norms(self.learned):
            norm.train()

    def loss(
        self, images: Tensor, labels: Tensor, *, distillation: float, temperature: float, smoothing: float = 0.0
    ) -> Tensor:
        """(1 − distillation)·cross-entropy + distillation·T²·KL(teacher ‖ student), logits divided by T (Hinton 2015).

        images [N, …]; labels [N], class numbers. The teacher sees the same images.
        """
        logits = self.learned(images).float()
        loss = torch.zeros((), device=logits.device)
        if distillation < 1:
            loss = (1 - distillation) * F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if distillation > 0:
            with torch.no_grad():
                wanted = self.teacher(images).float()
            loss = loss + distillation * divergence(logits, wanted, temperature)
        return loss

    def hardened(self, learned: fx.GraphModule | None = None) -> QuantizedModel:
        """A QuantizedModel with what was learned, by the copy itself or by an average of it: codes, scales, biases."""
        model = deepcopy(self.start)
        write_back((self.learned if learned is None else learned).eval(), model)
        if self.start.recipe.deployable and self.grids != "fixed":  # those are off ties already
            move_off_ties(model)
        model.meta["notes"] = (
            *self.start.notes,
            NOTES[self.grids],
        )
        return model


def divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(wanted / T) ‖ softmax(logits / T)), mean over the batch; logits [N, C]."""
    student, teacher = (F.log_softmax(values / temperature, 1) for values in (logits, wanted))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _float_graph(model: nn.Module, recipe: Recipe, batch: Any) -> fx.GraphModule:
    """The folded float network that quantize() starts from."""
    images = batch[0] if isinstance(batch, tuple | list) else batch
    graph, _ = fold(capture(deepcopy(model).eval(), images[:2]))
    if recipe.equalize:
        graph, _ = equalize(graph)
    return graph

"""Whether another model computes the codes that the simulation does: tensor by tensor, by how many codes, and why.
What is wrong with a model whose codes differ by more than ties is for faults.py to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.graph.operations import label, module_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.qtypes import Quantizer

TIE = 1e-4  # of a code: so near to a half before rounding, float32's noise decides; of 8 bits and fewer
SAME, TIES = "the same", "ties"


@dataclass(frozen=True)
class TensorAgreement:
    """One tensor's codes in two models.

    bits: of its codes. places: elements seen. differing: of these, codes that differ; most: by how much at the most.
    from_tie: how far the differing ones were from a half before rounding, at the most, in codes, computed in integers
    from the second model's codes of what the tensor is computed from.
    """

    name: str
    bits: int
    places: int = 0
    differing: int = 0
    most: int = 0
    from_tie: float = 0.0

    @property
    def share(self) -> float:
        """The fraction of places that differ."""
        return self.differing / self.places if self.places else 0.0

    @property
    def only_ties(self) -> bool:
        """Whether every difference is a tie that fell to the other side."""
        return self.most <= 1 and self.from_tie <= TIE * 2.0 ** max(
            0, self.bits - 8
        )  # codes of more digits, less noise left

    @property
    def why(self) -> str:
        """In words."""
        if not self.differing:
            return SAME
        return TIES if self.only_ties else f"up to {self.from_tie:.3g} of a code from a tie"

    def seeing(self, codes: Tensor, others: Tensor, before: Tensor) -> TensorAgreement:
        """With another batch: its codes in both models, and what they were before rounding; all of one shape."""
        if codes.shape != others.shape:
            raise ValueError(f"{self.name}: codes {list(codes.shape)} beside codes {list(others.shape)}")
        differing = codes != others
        apart = (codes[differing].long() - others[differing].long()).abs()
        v = before[differing].double()
        return replace(
            self,
            places=self.places + codes.numel(),
            differing=self.differing + len(apart),
            most=max(self.most, _highest(apart)),
            from_tie=max(self.from_tie, _highest((v - v.floor() - 0.5).abs())),
        )


def _highest(values: Tensor) -> Any:
    return values.max().item() if len(values) else 0


class _Recorder(fx.Interpreter):
    """Simulates, and keeps every quantizer's codes."""

    def __init__(self, model: QuantizedModel) -> None:
        super().__init__(model)
        self.model, self.codes = model, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        quantizer, source = module_of(self.model, n), n.args[0] if n.args else None
        if isinstance(quantizer, Quantizer) and isinstance(source, fx.Node):
            self.codes[tensor_name(n)] = quantizer.quantize(self.env[source])
        return value


def tensor_name(node: fx.Node) -> str:
    """The site that a quantizer's node belongs to, by name."""
    return label(node).removesuffix(":quantized")


@torch.no_grad()
def simulated_codes(model: QuantizedModel, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """The simulation's outputs, and its codes of every tensor on a grid."""
    recorder = _Recorder(model)
    return recorder.run(images), recorder.codes


def tensor_agreement(model: QuantizedModel, batches: Iterable[Tensor]) -> list[TensorAgreement]:
    """Each tensor on a grid, in the order of execution, over all batches of images.

    Each is computed in integers from the simulation's codes of what it is computed from, so that no tensor answers for
    another. Raises InputError as IntegerModel does.
    """
    integer = IntegerModel(model)
    found: dict[str, TensorAgreement] = {}
    for images in batches:
        _, codes = simulated_codes(model, images)
        _, trace = integer.trace(images, given=codes)
        for step in trace.steps:
            known = found.get(step.name, TensorAgreement(step.name, step.result.grid.bits))
            found[step.name] = known.seeing(step.result.codes, codes[step.name], step.before)
    return list(found.values())

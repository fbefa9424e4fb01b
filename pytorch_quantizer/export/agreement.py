"""Whether an integer model computes what the simulation said: tensor by tensor, by how many codes, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from pytorch_quantizer.export.integer import IntegerModel, Step
from pytorch_quantizer.graph.operations import label, module_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.qtypes import Quantizer

TIE = 1e-4  # of a code: so near to a half before rounding, float32's noise decides; of 8 bits and fewer


@dataclass(frozen=True)
class TensorAgreement:
    """One tensor, computed in integers from the simulation's codes of what it is computed from.

    bits: of its codes. places: elements seen. differing: of these, codes that differ from the simulation's; most: by
    how much at the most. from_tie: how far from a half the differing ones were before rounding, at the most, in codes.
    """

    name: str
    bits: int
    places: int = 0
    differing: int = 0
    most: int = 0
    from_tie: float = 0.0

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
            return "the same"
        return "ties" if self.only_ties else f"up to {self.from_tie:.3g} of a code from a tie"

    def seeing(self, step: Step, simulated: Tensor) -> TensorAgreement:
        """With another batch's codes."""
        apart = (step.result.codes - simulated.long()).abs()
        differing = apart > 0
        from_tie = (step.before.double() - step.before.double().floor() - 0.5).abs()[differing]
        return replace(
            self,
            places=self.places + apart.numel(),
            differing=self.differing + int(differing.sum()),
            most=max([self.most, *apart[differing].tolist()]),
            from_tie=max([self.from_tie, *from_tie.tolist()]),
        )


class _Recorder(fx.Interpreter):
    """Simulates, and keeps every quantizer's codes."""

    def __init__(self, model: QuantizedModel) -> None:
        super().__init__(model)
        self.model, self.codes = model, dict[str, Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        quantizer, source = module_of(self.model, n), n.args[0] if n.args else None
        if isinstance(quantizer, Quantizer) and isinstance(source, fx.Node):
            self.codes[label(n).removesuffix(":quantized")] = quantizer.quantize(self.env[source])
        return value


@torch.no_grad()
def simulated_codes(model: QuantizedModel, images: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """The simulation's outputs, and its codes of every tensor on a grid."""
    recorder = _Recorder(model)
    return recorder.run(images), recorder.codes


def tensor_agreement(model: QuantizedModel, batches: Iterable[Tensor]) -> list[TensorAgreement]:
    """Each tensor on a grid, in the order of execution, over all batches of images.

    Raises InputError as IntegerModel does.
    """
    integer = IntegerModel(model)
    found: dict[str, TensorAgreement] = {}
    for images in batches:
        _, codes = simulated_codes(model, images)
        _, trace = integer.trace(images, given=codes)
        for step in trace.steps:
            found[step.name] = found.get(step.name, TensorAgreement(step.name, step.result.grid.bits)).seeing(
                step, codes[step.name]
            )
    return list(found.values())

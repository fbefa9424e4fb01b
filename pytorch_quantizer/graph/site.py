"""Site: one tensor of the captured graph that could be quantized, and why it isn't where it isn't."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytorch_quantizer.quantization.qtypes import Quantizer

WIDE = ":wide"  # the suffix of a tensor's second name


@dataclass(frozen=True)
class Site:
    """One tensor. name: for people, unique. kind: weight, bias, activation, input, residual, state: what a recurrent
    layer reads of its own at each time step, or module: an operation that computes in float as a whole.

    consumers: the layers and operations that read it. quantizer: what it is quantized with, None where it isn't.
    carrier: the tensor on whose grid an unquantized one lives: the ReLU or the concatenation it is fused into; an
    integer kernel never stores it by itself. reason: why it stays in float. node: the graph node that produces it, or a
    parameter's path. observed: the node whose values choose the range (the input of a ReLU, else the node itself).
    by_outputs: a weight whose range is chosen by the error of its layer's outputs. remark: what was asked for it and
    done otherwise, and why.
    """

    name: str
    kind: str
    consumers: tuple[str, ...] = ()
    quantizer: Quantizer | None = None
    carrier: str | None = None
    reason: str | None = None
    node: str = ""
    observed: str = ""
    by_outputs: bool = False
    remark: str | None = None

    @property
    def is_activation(self) -> bool:
        """Whether it is a tensor of the graph that depends on the images."""
        return self.kind in ("activation", "input", "residual")

    @property
    def is_float(self) -> bool:
        """Whether it is left in float."""
        return self.quantizer is None and self.carrier is None

    @property
    def is_wide(self) -> bool:
        """Whether it is a second, wider quantization of a tensor, for the additions that read it."""
        return self.name.endswith(WIDE)

    def with_quantizer(self, quantizer: Quantizer) -> Site:
        """The same tensor under another quantizer."""
        return replace(self, quantizer=quantizer)

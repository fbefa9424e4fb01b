"""What an ONNX export is traced from: modules that stand for QuantizeLinear, Clip, DequantizeLinear and their like.
They only run inside torch.onnx.export. Where they go is onnx_rewrite.py's decision.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from pytorch_quantizer.graph.operations import Layer
from pytorch_quantizer.quantization.qparams import QParams

OPSET = 21  # the first with 16-bit QuantizeLinear
BYTE = 8  # bits
SHIFT = 128  # what a signed code becomes unsigned by
SITE = "site"  # the property of an ONNX node that says whose codes it computes
TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}
Limits = tuple[int, int]


class OnGrid(nn.Module):
    """x → its value on a grid, as QuantizeLinear and DequantizeLinear compute it; the shape of x.

    limits: the lowest and highest code that x may take, [qmin, qmax] or less; None where x needs no limits because it
    lies on the grid already. site: whose codes these are, None for a repetition. Up to 8 bits codes are uint8, those of
    a signed grid 128 higher, as is then the zero point: the same values in the type that most integer kernels know.
    Above, they are int16 or uint16.
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, grid: QParams, limits: Limits | None, site: str | None = None) -> None:
        super().__init__()
        self.grid, self.limits, self.site = grid, limits, site
        wide = torch.int16 if grid.signed else torch.uint16
        self.dtype = torch.uint8 if self.is_narrow else wide
        self.shift = SHIFT if self.is_narrow and grid.signed else 0
        self.register_buffer("scale", grid.scale.clone())
        self.register_buffer("zero_point", (grid.zero_point + self.shift).to(self.dtype))
        self.limit(limits)

    @property
    def is_narrow(self) -> bool:
        """Whether codes are bytes, which integer kernels read."""
        return self.grid.bits <= BYTE

    def limit(self, limits: Limits | None) -> None:
        """Take other limits."""
        self.limits, held = limits, torch.iinfo(self.dtype)
        low, high = limits or (held.min - self.shift, held.max - self.shift)
        self.clips = low + self.shift > held.min or high + self.shift < held.max
        for name, code in (("low", low), ("high", high)):
            as_code = torch.tensor(code + self.shift, dtype=self.dtype)
            # No runtime clips 16-bit codes. Values clipped to (limit − z)·s round to the limit's code.
            bound = as_code if self.is_narrow else (code - self.grid.zero_point) * self.grid.scale
            self.register_buffer(name, bound)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        if self.clips and not self.is_narrow:
            x = torch.minimum(torch.maximum(x, self._along(self.low, x)), self._along(self.high, x))
        properties = {} if self.site is None else {SITE: self.site}
        axis = {} if self.grid.axis is None else {"axis": self.grid.axis}
        grid = [self.scale, self.zero_point]
        codes = _onnx("QuantizeLinear", [x, *grid], self.dtype, x.shape, axis, properties)
        if self.clips and self.is_narrow:
            codes = _onnx("Clip", [codes, self.low, self.high], self.dtype, x.shape, {}, properties)
        return _onnx("DequantizeLinear", [codes, *grid], torch.float32, x.shape, axis)

    def _along(self, bound: Tensor, x: Tensor) -> Tensor:
        if self.grid.axis is None:
            return bound
        return bound.reshape([-1 if dim == self.grid.axis else 1 for dim in range(x.dim())])


class Coded(nn.Module):
    """A weight or bias as codes, dequantized where it is read.

    codes: any integer type; scale, zero_point: [] or [C]. layer, bits: of a weight, whose it is and on how many bits.
    """

    layer: str | None = None
    bits: int = 32

    @property
    def shift(self) -> int:
        """How much higher than the grid's codes these are."""
        return SHIFT if self.codes.dtype == torch.uint8 else 0

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero_point.to(codes.dtype))

    def forward(self) -> Tensor:
        """(codes − z)·s, float32, the shape of codes."""
        axis = {} if self.axis is None else {"axis": self.axis}
        inputs = [self.codes, self.scale, self.zero_point]
        return _onnx("DequantizeLinear", inputs, torch.float32, self.codes.shape, axis)


class Plain(nn.Module):
    """A weight or bias in float32."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values.detach().clone())

    def forward(self) -> Tensor:
        """The values."""
        return self.values


class ExportedLayer(nn.Module):
    """A convolution or linear layer whose weight and bias are modules that compute them.

    A linear layer's input [N, …, I] is flattened to [M, I]: the kernel that adds an int32 bias knows matrices alone.
    Where weight or bias is in float32, max(y, −largest float32) follows, which changes nothing: ONNX Runtime rounds
    float weights and biases to int8 and int32 by itself where QuantizeLinear comes straight behind their layer.
    """

    lowest: Tensor

    def __init__(self, layer: Layer, weight: nn.Module, bias: nn.Module | None) -> None:
        super().__init__()
        bare = copy.copy(layer)
        bare._parameters, bare._modules, bare._buffers = {"weight": None, "bias": None}, {}, {}
        self.layer, self.weight, self.bias = bare, weight, bias
        self.register_buffer("lowest", torch.tensor(torch.finfo(torch.float32).min))

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes."""
        y = self._computed(x)
        in_float = isinstance(self.weight, Plain) or isinstance(self.bias, Plain)
        return torch.maximum(y, self.lowest) if in_float else y

    def _computed(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        weight, bias = self.weight(), None if self.bias is None else self.bias()
        if isinstance(layer, nn.Linear):
            if x.dim() == 2:
                return F.linear(x, weight, bias)
            return F.linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
        if isinstance(layer, _ConvTransposeNd):
            settings = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
            return TRANSPOSED[len(layer.kernel_size)](x, weight, bias, *settings)
        computed: Tensor = layer._conv_forward(x, weight, bias)
        return computed


class GlobalAverage(nn.Module):
    """The mean over all dimensions but the first two, which stay with size 1."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, …] → [N, C, 1, …]."""
        return _onnx("GlobalAveragePool", [x], x.dtype, [*x.shape[:2], *(1 for _ in x.shape[2:])])


class Operation(nn.Module):
    """A function or a tensor's method as a module, so that what it becomes can be told by its path."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self.target = target

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Its result."""
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)


def _onnx(
    operator: str,
    inputs: list[Tensor],
    dtype: torch.dtype,
    shape: Any,
    attributes: dict[str, Any] | None = None,
    properties: dict[str, str] | None = None,
) -> Tensor:
    """The result of an ONNX operator, traced and not computed."""
    from torch.onnx import ops

    kind: Any = {"dtype": dtype, "shape": shape, "version": OPSET, "metadata_props": properties}
    return ops.symbolic(operator, inputs, attributes, **kind)

"""The exact integer reference: a simulated model's graph evaluated as integer kernels evaluate it, in plain PyTorch.

Slow and right. Codes stand for tensors, whole sums for what layers leave (in float64, which holds them exactly), and
one multiplication a tensor leads from these to those (requantize.py). What the graph computes in float, this computes
in float, and says so.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.export.requantize import FORMS, codes_of, fixed_point, multiply_fixed_point, scaled
from pytorch_quantizer.graph.operations import (
    AVERAGES,
    CHANNEL_KEEPING,
    CONCATENATIONS,
    PRODUCTS,
    Layer,
    is_addition,
    is_relu,
    is_tensor,
    keeps_values,
    label,
    layer_of,
    module_of,
    operation,
    relu_ceiling,
    tensor_inputs,
)
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import scale_of_outputs
from pytorch_quantizer.quantization.qparams import QParams
from pytorch_quantizer.quantization.qtypes import IntQuantizer, Quantizer

INT32_BITS = 8  # codes of more bits are summed up in int64
EXACT = 2**53  # whole numbers that float64 holds
ROUNDING = "half_even"
MULTIPLICATIONS = {operator.matmul, torch.matmul, torch.bmm, torch.mm, "matmul", "bmm", "mm"}
MULTIPLICATIONS |= {operator.mul, operator.imul, torch.mul, "mul"}


@dataclass(frozen=True)
class Codes:
    """A tensor on a grid. codes: int64, any shape."""

    codes: Tensor
    grid: QParams

    @property
    def offset(self) -> Tensor:
        """q − z, whole numbers in float64: zero is zero, as padding has it."""
        return (self.codes - self.grid.zero_point).double()

    @property
    def sums(self) -> Sums:
        """The same as sums of one term."""
        return Sums(self.offset, self.grid.scale, wide=self.grid.bits > INT32_BITS)

    def real(self) -> Tensor:
        """(q − z)·s, float32, rounded once, as the simulation has it."""
        return self.offset.float() * self.grid.scale


@dataclass(frozen=True)
class Sums:
    """What an operation leaves before it is put on a grid: values·scale.

    values: float64, whole numbers, or averages of them; scale: float32, broadcastable to values. wide: summed up in
    int64, since int32 may be too small.
    """

    values: Tensor
    scale: Tensor
    wide: bool = False

    def exactly(self) -> Tensor:
        """values·scale in float64."""
        return self.values * self.scale.double()

    def real(self) -> Tensor:
        """values·scale, float32, rounded once."""
        return self.exactly().float()


Value = Codes | Sums | Tensor


@dataclass
class Step:
    """How a tensor came onto its grid. before: v before rounding, so that codes are clamp(round(v) + z)."""

    name: str
    result: Codes
    before: Tensor


@dataclass
class Trace:
    """What a run saw. steps: each tensor on a grid, in order; floats: the operations that were computed in float."""

    steps: list[Step] = field(default_factory=list)
    floats: list[str] = field(default_factory=list)


class IntegerModel(nn.Module):
    """A QuantizedModel in integers: images [N, …] → its outputs in float32.

    multiplier: "float32", DESIGN's and ONNX Runtime's, or "fixed_point", gemmlowp's, for layers' sums in int32.
    Raises InputError for a model that integer kernels can't run: activations with a range a channel, ranges of each
    batch, stochastic rounding; and at a run, where sums don't fit in int32.
    """

    def __init__(self, model: QuantizedModel, *, multiplier: str = "float32") -> None:
        super().__init__()
        if not isinstance(model, QuantizedModel):
            raise InputError(f"an integer model is made of a QuantizedModel (pq.quantize), got {type(model).__name__}")
        if multiplier not in FORMS:
            raise InputError(f"multiplier must be one of {', '.join(FORMS)}, got {multiplier!r}")
        for site in model.sites:
            if site.is_activation and site.quantizer is not None:
                _check_runs(site.name, site.quantizer)
        self.model, self.multiplier = model, multiplier
        self.execution = "integer"  # what evaluation/latency.py calls its times

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """The outputs, float32."""
        return self.trace(images)[0]

    @torch.no_grad()
    def trace(self, images: Tensor, given: Mapping[str, Tensor] | None = None) -> tuple[Any, Trace]:
        """The outputs, and how they came about. given: codes by tensor that go on in place of those computed."""
        runner = _Runner(self.model, self.multiplier, given or {})
        return runner.run(images), runner.trace


def _check_runs(name: str, quantizer: Quantizer) -> None:
    kind = type(quantizer).__name__
    if not quantizer.needs_statistics:
        raise InputError(f"{name} takes its range from each batch ({kind}); quantize with statistics: offline")
    if not isinstance(quantizer, IntQuantizer):
        raise InputError(f"{name} is {quantizer.describe()} ({kind}), which integer kernels don't run; use int types")
    if quantizer.axis is not None:
        raise InputError(f"{name} has a range a channel, which integer kernels don't run; use deployable: true")
    if quantizer.rounding != ROUNDING:
        raise InputError(f"{name} rounds {quantizer.rounding}; the integer reference rounds {ROUNDING}")


class _Runner(fx.Interpreter):
    """Runs the graph on Codes, Sums and float tensors."""

    def __init__(self, model: QuantizedModel, multiplier: str, given: Mapping[str, Tensor]) -> None:
        super().__init__(model)
        self.model, self.multiplier, self.given, self.trace = model, multiplier, given, Trace()

    def run_node(self, n: fx.Node) -> Any:
        with self._set_current_node(n):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op in ("placeholder", "get_attr"):
            return getattr(self, n.op)(n.target, args, kwargs)
        if n.op == "output":
            return _mapped(args[0], _real)
        module = module_of(self.model, n)
        if isinstance(module, Quantizer):
            return self._quantized(n, module, args[0])
        return self._operated(n, args, kwargs)

    def _quantized(self, node: fx.Node, quantizer: Quantizer, value: Value) -> Codes:
        assert isinstance(quantizer, IntQuantizer)
        grid, name = quantizer.qparams, label(node).removesuffix(":quantized")
        before = self._before(value, grid)
        result = Codes(codes_of(before, grid), grid)
        self.trace.steps.append(Step(name, result, before))
        return Codes(self.given[name].long(), grid) if name in self.given else result

    def _before(self, value: Value, grid: QParams) -> Tensor:
        if isinstance(value, Tensor):
            return value / grid.scale
        sums = value.sums if isinstance(value, Codes) else value
        if self.multiplier == "fixed_point" and not sums.wide and _is_whole(sums.values):
            mantissa, shift = fixed_point(sums.scale / grid.scale)
            return multiply_fixed_point(sums.values.long(), mantissa, shift).double()
        return scaled(sums.values, sums.scale, grid.scale, wide=sums.wide)

    def _operated(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = [self.env[source] for source in tensor_inputs(node)]
        if operation(self.model, node) is operator.getitem and isinstance(args[0], tuple | list):
            return args[0][args[1]]  # of a split
        layer, on_grids = layer_of(self.model, node), all(isinstance(value, Codes) for value in inputs)
        if layer is not None and on_grids and _is_integer(layer):
            return self._layer(label(node), layer, inputs[0])
        if inputs and all(isinstance(value, Codes | Sums) for value in inputs):
            found = self._integer(node, args, kwargs, inputs, on_grids)
            if found is not None:
                return found
        if is_tensor(node):
            self.trace.floats.append(label(node))
        return self._called(node, args, kwargs, _real)

    def _layer(self, name: str, layer: Layer, x: Codes) -> Sums:
        """Σ (q_x − z_x)(q_w − z_w) + q_bias, on the scale s_x·s_w of each output channel."""
        weight: Any = layer.weight_quantizer
        bits = max(x.grid.bits, weight.bits)
        values, scale = _of_offsets(layer, weight)(x.offset), x.grid.scale * scale_of_outputs(layer, weight)
        channel = values.dim() - 1 if isinstance(layer, nn.Linear) else values.dim() - len(layer.kernel_size) - 1
        if layer.bias is not None:
            if getattr(layer, "bias_quantizer", None) is None:
                self.trace.floats.append(f"{name}.bias")
            values = values + _along(_bias_in_sums(layer, scale), channel, values.dim())
        _check_sums(name, values, bits)
        return Sums(values, _along(scale, channel, values.dim()), wide=bits > INT32_BITS)

    def _integer(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Any], on_grids: bool
    ) -> Any:
        """What an operation makes of integers; None where it is computed in float."""
        called, wide = operation(self.model, node), any(value.wide for value in map(_sums, inputs))
        if keeps_values(self.model, node):
            return self._kept(node, args, kwargs, inputs[0])
        if is_relu(self.model, node) and relu_ceiling(self.model, node) is None:
            (sums,) = map(_sums, inputs)
            return Sums(sums.values.clamp(min=0), sums.scale, sums.wide)
        if called in AVERAGES and on_grids:
            return Sums(self._called(node, args, kwargs, _offset), inputs[0].grid.scale, wide)
        factors = [value for value in args if isinstance(value, Codes | Sums)]
        if called in MULTIPLICATIONS and on_grids and len(factors) == len(args) == 2:
            product = _sums(factors[0]).scale * _sums(factors[1]).scale
            return Sums(self._called(node, args, kwargs, _offset), product, wide)
        if called in CONCATENATIONS:
            scales = self._called(node, args, kwargs, lambda value: _sums(value).scale.expand_as(_sums(value).values))
            return Sums(self._called(node, args, kwargs, lambda value: _sums(value).values), scales, wide)
        if is_addition(self.model, node) or is_relu(self.model, node) or called in PRODUCTS:
            exactly = self._called(node, args, kwargs, lambda value: _sums(value).exactly())
            return Sums(exactly, torch.ones((), device=exactly.device), wide)
        return None

    def _kept(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any], value: Codes | Sums) -> Any:
        """Of an operation that keeps values: codes stay codes, and sums sums, of scale 1 where channels move."""
        if isinstance(value, Codes):
            kept = self._called(node, args, kwargs, _offset)
            return _mapped(kept, lambda part: Codes(part.long() + value.grid.zero_point, value.grid))
        if operation(self.model, node) in CHANNEL_KEEPING or value.scale.numel() == 1:
            values = self._called(node, args, kwargs, lambda given: given.values)
            return _mapped(values, lambda part: Sums(part, value.scale, value.wide))
        exactly = self._called(node, args, kwargs, lambda given: given.exactly())
        return _mapped(exactly, lambda part: Sums(part, torch.ones((), device=part.device), value.wide))

    def _called(self, node: fx.Node, args: Any, kwargs: Any, of: Callable[[Any], Any]) -> Any:
        """The operation itself, on what ``of`` makes of Codes and Sums."""

        def plain(value: Any) -> Any:
            return of(value) if isinstance(value, Codes | Sums) else value

        args, kwargs = _mapped(args, plain), _mapped(kwargs, plain)
        return getattr(self, node.op)(node.target, args, kwargs)


def _is_integer(layer: Layer) -> bool:
    """Whether a layer's weight lies on an integer grid."""
    weight = getattr(layer, "weight_quantizer", None)
    return isinstance(weight, IntQuantizer)


def _of_offsets(layer: Layer, weight: IntQuantizer) -> Layer:
    """The layer with q_w − z_w for a weight, in float64, and no bias."""
    codes, zero_point = weight.quantize(layer.weight), _along(weight.zero_point, weight.axis, layer.weight.dim())
    found = copy.copy(layer)
    found._parameters = {
        "weight": nn.Parameter((codes.long() - zero_point).double(), requires_grad=False),
        "bias": None,
    }
    return found


def _bias_in_sums(layer: Layer, scale: Tensor) -> Tensor:
    """The bias in units of the sums: its int32 codes, or, where it is left in float, the share it comes to."""
    assert layer.bias is not None
    quantizer = getattr(layer, "bias_quantizer", None)
    return layer.bias.double() / scale.double() if quantizer is None else quantizer.quantize(layer.bias).double()


def _check_sums(name: str, values: Tensor, bits: int) -> None:
    most = values.abs().amax().item() if values.numel() else 0.0
    if most >= EXACT or (bits <= INT32_BITS and most > 2**31 - 1):
        kind = "int32" if bits <= INT32_BITS else "float64, in which the reference adds whole numbers"
        raise InputError(f"{name}: sums reach {most:.3g}, beyond {kind}; use fewer bits for this layer")


def _along(values: Tensor, axis: int | None, dims: int) -> Tensor:
    """[C] in the shape in which it broadcasts along ``axis`` of a tensor of so many dimensions; [] as it is."""
    if values.dim() == 0 or axis is None:
        return values
    return values.reshape([-1 if d == axis else 1 for d in range(dims)])


def _is_whole(values: Tensor) -> bool:
    return bool((values == values.round()).all())


def _sums(value: Codes | Sums) -> Sums:
    return value.sums if isinstance(value, Codes) else value


def _offset(value: Codes | Sums) -> Tensor:
    assert isinstance(value, Codes)
    return value.offset


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """What fx's map_aggregate does, by types that mypy can follow."""
    return fx.node.map_aggregate(value, function)


def _real(value: Any) -> Any:
    return value.real() if isinstance(value, Codes | Sums) else value

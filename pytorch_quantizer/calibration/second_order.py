"""Second-order rounding carried out on a simulated model: each weight's codes by what they do to its layer's outputs,
layer after layer with the layers before already quantized. The arithmetic is quantization/second_order_rounding.py's.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from pytorch_quantizer.calibration.correction import Correction
from pytorch_quantizer.calibration.sampled_windows import sampled_windows, weight_of_rows, weight_rows
from pytorch_quantizer.calibration.stepper import Stepper, Values
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.biases import BIAS_ROOM
from pytorch_quantizer.graph.operations import TRANSPOSED, Layer, label, layer_nodes
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import scale_of_outputs
from pytorch_quantizer.quantization.qtypes import BiasQuantizer, IntQuantizer
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantization.second_order_rounding import (
    RowGrid,
    least_squares_target,
    search_scales,
    second_order_round,
)

ROWS = 16384  # windows that are looked at, in all, and at least one of each image
STRIDE = 7  # places by which the windows of each batch are displaced
SWEEPS = 3
ROWS_AN_INPUT = 32  # where fewer windows are seen, less is made of what inputs have in common
MOST_INPUTS = 8192  # of an output, whose second moments are kept: 0.5 GiB in float64


@torch.no_grad()
def round_weights(
    model: QuantizedModel, graph: fx.GraphModule, batches: list[Tensor], *, progress: bool = True
) -> list[Correction]:
    """Choose the codes of every weight on an integer grid anew, in place; what has no such grid stays as it is.

    model: the simulated model. graph: the float network it was made from, folded. batches: images.
    weight_rounding gptq: one pass over the columns, on the grid as it is, for the layer's own outputs on its quantized
    inputs. second_order: for the float network's outputs on the float inputs, which the weights are first moved towards
    (least_squares_target), with scales that suit (search_scales), SWEEPS sweeps, and the bias that mends the mean.
    A row's codes are kept where its outputs' error on the images is below nearest rounding's. Layers that are called
    more than once, and those of more than MOST_INPUTS inputs, keep nearest rounding: layers_left names them.
    """
    targets = layers_to_round(model)
    simulated, expected = Stepper(model, batches), Stepper(graph, batches)
    originals = {node.name: node for node in graph.graph.nodes}
    own = model.recipe.weight_rounding == "gptq"  # its own outputs are what is wanted, not the float network's
    done = []
    for node in tqdm(model.graph.nodes, "rounding", delay=1, disable=not progress, unit="node", leave=False):
        if node.op == "output":
            continue
        if node in targets:
            read = simulated.values[node.all_input_nodes[0]]
            wanted = read if own else expected.run_to(originals[node.name].all_input_nodes[0])
            rounding = _Rounding(targets[node], graph.get_submodule(str(node.target)), model.recipe)
            done.append(rounding.carry_out(label(node), read, wanted))
        simulated.step(node)
        simulated.forget(node, set())
    return done


def windows_seen(node: fx.Node, layer: Layer, batch: int, images: int) -> int:
    """How many windows of a batch are looked at, at most, where there are so many images in all.

    node: the layer's call, whose shape is known.
    """
    shape = node.meta["shape"]
    places = math.prod(shape[1:-1] if isinstance(layer, nn.Linear) else shape[2:])
    return batch * min(places, -(-ROWS // max(1, images)))


def layers_to_round(model: QuantizedModel) -> dict[fx.Node, Layer]:
    """The calls of layers whose weights are rounded."""
    calls = _calls(model)
    return {node: layer for node, layer in layer_nodes(model) if _obstacle(layer, calls[str(node.target)]) is None}


def layers_left(model: QuantizedModel) -> dict[str, str]:
    """The layers whose weights are quantized and keep their rounding, each by its path, with the reason."""
    reasons = {path: _obstacle(model.get_submodule(path), count) for path, count in _calls(model).items()}
    return {path: reason for path, reason in reasons.items() if reason}


def _calls(model: QuantizedModel) -> Counter[str]:
    return Counter(str(node.target) for node, _ in layer_nodes(model))


def _obstacle(layer: Any, calls: int) -> str | None:
    """Why a layer's weight isn't rounded here, None where it is; a weight in float has nothing to be rounded: ''."""
    quantizer: Any = getattr(layer, "weight_quantizer", None)
    if quantizer is None:
        return ""
    if not isinstance(quantizer, IntQuantizer):
        return f"its weight is {quantizer.describe()}"
    if calls > 1:
        return f"it is called {calls} times"
    inputs = weight_rows(layer, layer.weight).shape[2]
    return f"its outputs have {inputs:,} inputs, above {MOST_INPUTS:,}" if inputs > MOST_INPUTS else None


@dataclass(frozen=True)
class _Inputs:
    """What a layer reads, x, and what it is to give the outputs of, f: E[x xᵀ], E[f xᵀ], E[(W f)²], E[x], E[f].

    [G, K, K], [G, R] of the outputs, and [G, K], float64; all about the means, as a bias that mends the mean leaves
    them. count: of windows.
    """

    squares: Tensor
    cross: Tensor
    outputs: Tensor
    mean: Tensor
    float_mean: Tensor
    count: int

    @classmethod
    def of(cls, layer: Layer, weight: Tensor, quantized: Values, floats: Values) -> _Inputs:
        """Of ROWS windows of all batches. weight: [G, R, K]."""
        images, same, float_weight = sum(len(x) for x in quantized), floats is quantized, weight.float()
        sums: list[Any] = []
        near: list[Tensor] = []  # the first batch's means: what is summed is near zero, and no digits are lost
        count = 0
        for index, values in enumerate(zip(quantized, floats, strict=True)):
            if not values[0].numel():
                continue
            rows = max(1, ROWS * len(values[0]) // images)
            seen = [sampled_windows(layer, value, rows, STRIDE * index) for value in values[: 1 if same else 2]]
            near = near or [part.mean(1, keepdim=True) for part in seen]
            x, f = (part - middle for part, middle in zip((seen * 2)[:2], (near * 2)[:2], strict=True))
            squares = torch.bmm(x.mT, x)
            cross = squares if same else torch.bmm(f.mT, x)
            outputs = torch.bmm(float_weight, f.mT).square().sum(2)
            parts = [part.double() for part in (squares, cross, outputs, x.sum(1), f.sum(1))]
            sums = [total + part for total, part in zip(sums or [0.0] * 5, parts, strict=True)]
            count += x.shape[1]
        if not sums:
            raise InputError("no value was observed; the calibration set or the tensor is empty")
        squares, cross, outputs, x, f = (total / count for total in sums)
        means = [middle.squeeze(1).double() + off for middle, off in zip((near * 2)[:2], (x, f), strict=True)]
        if same:
            outputs = (torch.bmm(weight, squares) * weight).sum(2)  # so that small errors are differences of equals
        outputs = outputs - (weight @ f.unsqueeze(2)).squeeze(2).square()
        return cls(squares - _outer(x, x), cross - _outer(f, x), outputs, means[0], means[1], count)

    def with_means(self, weight: Tensor) -> _Inputs:
        """The same about zero."""
        x, f = self.mean, self.float_mean
        squares, cross = self.squares + _outer(x, x), self.cross + _outer(f, x)
        outputs = self.outputs + (weight @ f.unsqueeze(2)).squeeze(2).square()
        return replace(self, squares=squares, cross=cross, outputs=outputs)

    def shrunk(self, damping: float) -> _Inputs:
        """The same with more on the diagonals, the fewer windows an input there are below ROWS_AN_INPUT."""
        inputs = self.squares.shape[1]
        scarcity = max(0.0, ROWS_AN_INPUT * inputs / self.count - 1)
        mean = self.squares.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
        more = torch.diag_embed((scarcity * damping * mean).expand(-1, inputs))
        return replace(self, squares=self.squares + more, cross=self.cross + more)


def _outer(first: Tensor, second: Tensor) -> Tensor:
    return first.unsqueeze(2) * second.unsqueeze(1)


class _Rounding:
    """One layer's weight, its grid and what it reads."""

    inputs: _Inputs
    seen: _Inputs  # the same, about the means where the bias mends these

    def __init__(self, layer: Layer, original: Any, recipe: Recipe) -> None:
        self.layer, self.is_full = layer, recipe.weight_rounding == "second_order"
        self.given: dict[str, Any] = {"damping": recipe.rounding_damping, "by_size": recipe.rounding_order == "size"}
        self.weight = weight_rows(layer, original.weight.detach()).double()
        self.bias: Tensor | None = original.bias
        self.grid = self._grid()

    def carry_out(self, name: str, read: Values, wanted: Values) -> Correction:
        """Give the layer its codes, scales and bias. read: its inputs; wanted: those whose outputs it is to give."""
        self.inputs = _Inputs.of(self.layer, self.weight, read, wanted)
        self.seen = self.inputs if self.is_full else self.inputs.with_means(self.weight)
        nearest = self.grid.nearest(self.weight)
        rounded, grid = self._rounded()
        errors = [self._error(candidate) for candidate in (nearest, rounded)]
        better = (self._together(errors[1]) < self._together(errors[0])) & self._holds_bias(grid)
        grid = grid._replace(scale=torch.where(better, grid.scale, self.grid.scale))
        self._apply(torch.where(better.unsqueeze(2), rounded, nearest), grid)
        after = torch.where(better, errors[1], errors[0])
        means = [float(error.mean().clamp(min=0)) for error in (errors[0], after)]
        return Correction(f"{name}.weight", (name,), means[0], means[1], bool(better.any()))

    def _rounded(self) -> tuple[Tensor, RowGrid]:
        inputs = self.seen.shrunk(self.given["damping"])
        if not self.is_full:
            return second_order_round(self.weight, inputs.squares, self.grid, **self.given), self.grid
        target = least_squares_target(self.weight, inputs.squares, inputs.cross, damping=self.given["damping"])
        return search_scales(target, inputs.squares, self.grid, self._tied(), sweeps=SWEEPS, **self.given)

    def _error(self, rounded: Tensor) -> Tensor:
        """[G, R]: E(w f − ŵ x)² of each output channel, about its mean, which the bias mends; gptq: E(w x − ŵ x)²."""
        squares = (torch.bmm(rounded, self.seen.squares) * rounded).sum(2)
        products = (torch.bmm(self.weight, self.seen.cross) * rounded).sum(2)
        return squares - 2 * products + self.seen.outputs

    def _holds_bias(self, grid: RowGrid) -> Tensor:
        """[G, R], or [1, 1]: whether int32 codes of s_x·s_w can hold the layer's bias with these scales."""
        quantizer = getattr(self.layer, "bias_quantizer", None)
        if not isinstance(quantizer, BiasQuantizer) or self.bias is None:
            return torch.ones_like(grid.scale, dtype=torch.bool)
        room = grid.scale * float(quantizer.input_scale) * (BIAS_ROOM / 2)
        return self._all_tied(self.bias.detach().double().abs().reshape(room.shape) <= room)

    def _all_tied(self, holds: Tensor) -> Tensor:
        for dim in self._tied():
            holds = holds.all(dim, keepdim=True).expand_as(holds)
        return holds

    def _tied(self) -> tuple[int, ...]:
        """The dimensions of [G, R] along which all have one scale."""
        scale: Tensor = self._quantizer.scale
        if scale.dim() == 0:
            return (0, 1)
        return (0,) if isinstance(self.layer, TRANSPOSED) and self.layer.groups > 1 else ()

    def _together(self, error: Tensor) -> Tensor:
        """Errors of rows that share a scale, summed, for those are kept or not as one."""
        tied = self._tied()
        return error.sum(tied, keepdim=True).expand_as(error) if tied and self.is_full else error

    @property
    def _quantizer(self) -> IntQuantizer:
        quantizer = self.layer.weight_quantizer
        assert isinstance(quantizer, IntQuantizer)
        return quantizer

    def _grid(self) -> RowGrid:
        quantizer, shape = self._quantizer, self.weight.shape[:2]
        scale = scale_of_outputs(self.layer, quantizer).double().expand(shape.numel()).reshape(shape)
        zero: Tensor = quantizer.zero_point.double()
        zero = zero if zero.dim() == 0 else zero.repeat(shape.numel() // zero.numel()).reshape(shape)
        return RowGrid(scale, zero.expand(shape), quantizer.qmin, quantizer.qmax)

    def _apply(self, rounded: Tensor, grid: RowGrid) -> None:
        """Put codes, scales and, of the full method, the bias that mends the mean into the layer."""
        quantizer, layer = self._quantizer, self.layer
        codes = weight_of_rows(layer, rounded / grid.scale.unsqueeze(2) + grid.zero_point.unsqueeze(2))
        scale = grid.scale.flatten()[: quantizer.scale.numel()].reshape(quantizer.scale.shape)
        quantizer.scale = scale.to(quantizer.scale.dtype)
        levels = quantizer.dequantize(torch.round(codes).to(torch.int32))
        layer.weight = nn.Parameter(levels.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
        bias_quantizer = getattr(layer, "bias_quantizer", None)
        if isinstance(bias_quantizer, BiasQuantizer):
            bias_quantizer.rescale(scale_of_outputs(layer, quantizer))
        if layer.bias is not None and self.is_full:
            layer.bias.copy_(self._bias(bias_quantizer))

    def _bias(self, quantizer: BiasQuantizer | None) -> Tensor:
        """The float layer's bias and what the outputs' means miss, on the grid of the new sums where there is one."""
        rounded = weight_rows(self.layer, self.layer.weight).double()
        missed = self.weight @ self.inputs.float_mean.unsqueeze(2) - rounded @ self.inputs.mean.unsqueeze(2)
        bias = missed.flatten() + (0.0 if self.bias is None else self.bias.detach().double())
        return bias if quantizer is None else quantizer(bias)

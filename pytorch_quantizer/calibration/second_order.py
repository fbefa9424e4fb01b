"""Second-order rounding carried out on a simulated model: each weight's codes by what they do to its layer's outputs,
layer after layer with the layers before already quantized. The arithmetic is quantization/second_order_rounding.py's.
"""

from __future__ import annotations

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
    more than once, and those of more than MOST_INPUTS inputs, keep nearest rounding.
    """
    targets = _targets(model)
    simulated, expected = Stepper(model, batches), Stepper(graph, batches)
    originals = {node.name: node for node in graph.graph.nodes}
    done = []
    for node in tqdm(model.graph.nodes, "rounding", delay=1, disable=not progress, unit="node", leave=False):
        if node.op == "output":
            continue
        if node in targets:
            source = originals[node.name].all_input_nodes[0]
            inputs = _Inputs.of(targets[node], simulated.values[node.all_input_nodes[0]], expected.run_to(source))
            rounding = _Rounding(targets[node], graph, str(node.target), inputs, model.recipe)
            done.append(rounding.carry_out(label(node)))
        simulated.step(node)
        simulated.forget(node, set())
    return done


def _targets(model: QuantizedModel) -> dict[fx.Node, Layer]:
    """The calls of layers whose weights are rounded."""
    calls = Counter(str(node.target) for node, _ in layer_nodes(model))
    return {
        node: layer
        for node, layer in layer_nodes(model)
        if calls[str(node.target)] == 1
        and isinstance(getattr(layer, "weight_quantizer", None), IntQuantizer)
        and weight_rows(layer, layer.weight).shape[2] <= MOST_INPUTS
    }


@dataclass(frozen=True)
class _Inputs:
    """What a layer reads, x in the simulated and f in the float network: E[x xᵀ], E[f xᵀ], E[f fᵀ], E[x], E[f].

    [G, K, K] and [G, K], float64; squares and products about the means, as a bias that mends the mean leaves them.
    count: of windows.
    """

    squares: Tensor
    cross: Tensor
    float_squares: Tensor
    mean: Tensor
    float_mean: Tensor
    count: int

    @classmethod
    def of(cls, layer: Layer, quantized: Values, floats: Values) -> _Inputs:
        """Of ROWS windows of all batches."""
        images = sum(len(x) for x in quantized)
        sums: list[Any] = []
        near: list[Tensor] = []  # the first batch's means: what is summed is near zero, and no digits are lost
        count = 0
        for index, values in enumerate(zip(quantized, floats, strict=True)):
            if not values[0].numel():
                continue
            rows = max(1, ROWS * len(values[0]) // images)
            seen = [sampled_windows(layer, value, rows, STRIDE * index) for value in values]
            near = near or [part.mean(1, keepdim=True) for part in seen]
            x, f = (part - middle for part, middle in zip(seen, near, strict=True))
            products = [torch.bmm(a.mT, b) for a, b in ((x, x), (f, x), (f, f))]
            parts = [part.double() for part in (*products, x.sum(1), f.sum(1))]
            sums = [total + part for total, part in zip(sums or [0.0] * 5, parts, strict=True)]
            count += x.shape[1]
        if not sums:
            raise InputError("no value was observed; the calibration set or the tensor is empty")
        squares, cross, float_squares, x, f = (total / count for total in sums)
        means = [middle.squeeze(1).double() + off for middle, off in zip(near, (x, f), strict=True)]
        squares, cross, float_squares = squares - _outer(x, x), cross - _outer(f, x), float_squares - _outer(f, f)
        return cls(squares, cross, float_squares, means[0], means[1], count)

    def with_means(self) -> _Inputs:
        """The same about zero."""
        x, f = self.mean, self.float_mean
        squares, cross = self.squares + _outer(x, x), self.cross + _outer(f, x)
        return replace(self, squares=squares, cross=cross, float_squares=self.float_squares + _outer(f, f))

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

    def __init__(self, layer: Layer, graph: fx.GraphModule, path: str, inputs: _Inputs, recipe: Recipe) -> None:
        self.layer, self.inputs, self.is_full = layer, inputs, recipe.weight_rounding == "second_order"
        self.given: dict[str, Any] = {"damping": recipe.rounding_damping, "by_size": recipe.rounding_order == "size"}
        self.weight = weight_rows(layer, graph.get_parameter(f"{path}.weight").detach()).double()
        bias: Any = graph.get_submodule(path).bias
        self.bias: Tensor | None = bias
        self.seen = inputs if self.is_full else inputs.with_means()
        self.grid = self._grid()

    def carry_out(self, name: str) -> Correction:
        """Give the layer its codes, scales and bias."""
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
        cross = self.seen.cross if self.is_full else self.seen.squares
        own = self.seen.float_squares if self.is_full else self.seen.squares
        squares = (torch.bmm(rounded, self.seen.squares) * rounded).sum(2)
        products = (torch.bmm(self.weight, cross) * rounded).sum(2)
        return squares - 2 * products + (torch.bmm(self.weight, own) * self.weight).sum(2)

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

"""Weights' scales moved off ties, so that a simulation and integer kernels round a layer's sums alike.
How integers are put on a grid is export/requantize.py's business; what grids there are, place.py's and calibration's.

A layer's sums are whole multiples n·s_x·s_w, which the next tensor's grid rounds: v = n·m, m = s_x·s_w / s_y. Where
some n·m comes as near to a half k + ½ as float32's noise, a simulation falls to one side and integer kernels, or the
simulation on another machine, to the other, each time that this sum n occurs; one such code makes many others differ.
A scale that differs by some parts in a million has no such n, and costs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from pytorch_quantizer.graph.operations import (
    TRANSPOSED,
    Layer,
    is_concatenation,
    is_relu,
    keeps_values,
    kept_operands,
    layer_nodes,
    module_of,
    tensor_inputs,
)
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import scale_of_outputs
from pytorch_quantizer.quantization.qparams import QParams
from pytorch_quantizer.quantization.qtypes import IntQuantizer

MOST_BITS = 8  # wider grids have more ties than a scale can avoid, and a code there is little
CLEARANCE = 2.0**-20  # from a tie, of the grid's width: float32 sums of a few thousand terms err by less
MOST_CLEARANCE = 2.0**-15  # in codes: of the 255 ties of 8 bits few scales are farther
STEP, STEPS = 2.0**-20, 256  # of a scale: it moves by 0.024 % at the most
AT_ONCE = 16  # steps that are tried together
CACHED = 2**17  # distances that are computed together: a megabyte, which caches hold


@torch.no_grad()
def move_off_ties(model: QuantizedModel) -> int:
    """Nudge weights' scales, in place, until no sum of a layer lies on a tie of a grid of 8 bits or fewer behind it.

    Codes stay; weights, and biases' grids, follow their scales. Where no scale within reach is clear of every tie, the
    one that keeps farthest from them serves. Returns how many scales were moved.
    """
    calls, moved = Counter(str(node.target) for node, _ in layer_nodes(model)), 0
    for node, layer in layer_nodes(model):
        weight, scale_read = getattr(layer, "weight_quantizer", None), input_scale(model, node)
        grids = [grid for grid in _readers(model, node) if grid.bits <= MOST_BITS]
        if not isinstance(weight, IntQuantizer) or scale_read is None or not grids or calls[str(node.target)] > 1:
            continue
        scale = clear_scale(weight.scale, scale_read, grids)
        changed = int((scale != weight.scale).sum())
        if changed:
            _rescale(layer, weight, scale)
            moved += changed
    return moved


def clear_scale(scale: Tensor, input_scale: Tensor, grids: list[QParams]) -> Tensor:
    """A weight's scale, [] or [C], each moved by the fewest steps that make ``clearance`` 1 or more on all grids.

    Where none does, by as many as bring it highest.
    """
    found = scale.reshape(-1).clone()
    reached = clearance(found, input_scale, grids)
    for steps in _steps(scale.device).split(AT_ONCE):
        unclear = (reached < 1).nonzero().flatten()
        if not len(unclear):
            break
        tried = (scale.reshape(-1)[unclear, None].double() * (1 + steps)).to(scale.dtype)
        clear = clearance(tried, input_scale, grids)
        most, which = clear.clamp(max=1).max(1)  # of several that are clear, the first
        better = most > reached[unclear]
        chosen = tried.gather(1, which[:, None]).flatten()
        found[unclear[better]], reached[unclear[better]] = chosen[better], most[better]
    return found.reshape(scale.shape)


def clearance(scale: Tensor, input_scale: Tensor, grids: list[QParams]) -> Tensor:
    """For each scale, any shape: the least |n·m − (k + ½)| over sums n, ties k and grids, in what a grid asks for."""
    found = torch.full(scale.shape, torch.inf, dtype=torch.float64, device=scale.device)
    for grid in grids:
        multipliers = (input_scale * scale / grid.scale).double().flatten()
        lowest = grid.qmin - int(grid.zero_point)
        ties = torch.arange(lowest, lowest + grid.qmax - grid.qmin, device=scale.device).double() + 0.5
        apart = torch.cat([_nearest(part, ties) for part in multipliers.split(max(1, CACHED // len(ties)))])
        found = torch.minimum(found, apart.reshape(scale.shape) / min(CLEARANCE * 2.0**grid.bits, MOST_CLEARANCE))
    return found


def _nearest(multipliers: Tensor, ties: Tensor) -> Tensor:
    """How near a multiple of each comes to any tie, [C] and [K] → [C]."""
    sums = ties / multipliers.unsqueeze(1)
    sums -= sums.round()
    return sums.abs_().amin(1) * multipliers


def _steps(device: torch.device) -> Tensor:
    """STEP, −STEP, 2·STEP, −2·STEP …"""
    count = torch.arange(1, STEPS + 1, dtype=torch.float64, device=device)
    return torch.stack([count, -count], 1).flatten() * STEP


def _rescale(layer: Layer, weight: IntQuantizer, scale: Tensor) -> None:
    """Give a layer's weight another scale, and its bias the grid that follows; codes stay."""
    axis = int(isinstance(layer, TRANSPOSED))
    values = layer.weight.movedim(axis, 0) if scale.dim() else layer.weight[None]
    old, new = (part.reshape([-1] + [1] * (values.dim() - 1)) for part in (weight.scale, scale))
    values.div_(old).round_().mul_(new)  # q − z in between, whole numbers: exactly
    weight.scale = scale
    bias = getattr(layer, "bias_quantizer", None)
    if bias is not None and layer.bias is not None:
        layer.bias.copy_(bias.rescale(scale_of_outputs(layer, weight))(layer.bias))


def input_quantizer(model: QuantizedModel, node: fx.Node) -> fx.Node | None:
    """The call of the quantizer on whose one grid a simulated layer's input lies, None where there is none."""
    source = tensor_inputs(node)[0]
    while keeps_values(model, source):
        (source,) = kept_operands(model, source)
    return None if _grid(model, source) is None else source


def input_scale(model: QuantizedModel, node: fx.Node) -> Tensor | None:
    """The scale of that grid."""
    source = input_quantizer(model, node)
    grid = None if source is None else _grid(model, source)
    return None if grid is None else grid.scale


def _readers(model: QuantizedModel, node: fx.Node) -> Iterator[QParams]:
    """The grids that a layer's sums are put on as they are, or after ReLUs and what keeps values."""
    for user in node.users:
        grid = _grid(model, user)
        if grid is not None:
            yield grid
        elif is_relu(model, user) or keeps_values(model, user) or is_concatenation(model, user):
            yield from _readers(model, user)


def _grid(model: QuantizedModel, node: fx.Node) -> QParams | None:
    """The grid, one for the whole tensor, that a node puts its input on."""
    quantizer = module_of(model, node)
    if not isinstance(quantizer, IntQuantizer) or not quantizer.needs_statistics or quantizer.axis is not None:
        return None
    return quantizer.qparams

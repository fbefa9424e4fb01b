"""Weights' scales moved off ties, so that a simulation and integer kernels round a layer's sums alike.
How integers are put on a grid is export/requantize.py's business; what grids there are, place.py's and calibration's.

A layer's sums are whole multiples n·s_x·s_w, which the next tensor's grid rounds: v = n·m, m = s_x·s_w / s_y. Where
some n·m comes as near to a half k + ½ as float32's noise, a simulation falls to one side and integer kernels, or the
simulation on another machine, to the other, each time that this sum n occurs; one such code makes many others differ.
Where m = p/q with an odd q, though, n·m − (k + ½) = (2np − (2k + 1)q) / 2q has an odd numerator: no sum is nearer to
any tie than 1/2q. With q of some thousands such an m lies within 0.07 % of any, mostly within 0.005 %.
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
from pytorch_quantizer.quantization.qparams import MAX_SCALE, MIN_SCALE, QParams
from pytorch_quantizer.quantization.qtypes import IntQuantizer

MOST_BITS = 8  # of wider grids float32's noise is as large as the distances between sums, and a code there is little
CLEARANCE = 2.0**-20  # from a tie, of the grid's width: float32 sums of a few thousand terms err by less
MOST_CLEARANCE = 2.0**-13  # in codes, what 7 and 8 bits get
ROUNDED = 3 * 2.0**-24  # of m at the most: its scales, their product and the quotient are float32
NUMERATORS = 64  # that are tried for a fraction near m
AT_ONCE = 64  # channels whose fractions are held against several grids at a time: some 40 MB a grid
DENOMINATORS = 2  # odd ones on either side that are tried with each where several grids read the same sums


@torch.no_grad()
def move_off_ties(model: QuantizedModel) -> int:
    """Nudge weights' scales, in place, until no sum of a layer lies on a tie of a grid of 8 bits or fewer behind it.

    Codes stay; weights, and biases' grids, follow their scales. Returns how many scales were moved.
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
    """A weight's scale, [] or [C], such that no sum comes nearer to a tie of any grid than ``clearance_asked``.

    Of the fractions of odd denominator for the widest grid the nearest; where other grids read the same sums, the
    nearest that is clear of their ties too, or else the one that keeps farthest from them. A scale stays where
    the other is none that scales may have.
    """
    widest = max(grids, key=lambda grid: grid.bits)
    others = [grid for grid in grids if grid.bits != widest.bits or not torch.equal(grid.scale, widest.scale)]
    parts = scale.reshape(-1, 1).split(AT_ONCE if others else max(1, scale.numel()))
    return torch.cat([_clear(part, input_scale, widest, others) for part in parts]).reshape(scale.shape)


def _clear(scale: Tensor, input_scale: Tensor, widest: QParams, others: list[QParams]) -> Tensor:
    """``clear_scale`` of [C, 1]."""
    multiplier = _multiplier(scale, input_scale, widest)
    numerator, denominator = _fractions(multiplier, largest_denominator(widest.bits), DENOMINATORS if others else 0)
    apart = (numerator / multiplier).div_(denominator).sub_(1).abs_()
    order = apart.argsort(dim=1, stable=True) if others else apart.argmin(1, keepdim=True)
    tried = numerator.gather(1, order) / denominator.gather(1, order)
    scales = (tried * (widest.scale.double() / input_scale.double())).to(scale.dtype)
    clear = clearance(scales, input_scale, others).clamp(max=1)  # of several that are clear, the first
    chosen = scales.gather(1, clear.max(1, keepdim=True).indices)
    return torch.where((chosen < MIN_SCALE) | (chosen > MAX_SCALE), scale, chosen)


def _multiplier(scale: Tensor, input_scale: Tensor, grid: QParams) -> Tensor:
    """m = s_x·s_w / s_y, float64: in float32 the product of small scales would be 0, of large ones infinite."""
    return input_scale.double() * scale.double() / grid.scale.double()


def _fractions(multiplier: Tensor, largest: int, beside: int) -> tuple[Tensor, Tensor]:
    """Of multipliers [C, 1] the numerators and odd denominators, both [C, F], of fractions near each.

    largest: what denominators are at most, or a little more.

    beside: how many denominators on either side of a numerator's nearest are taken too.
    """
    numerator = ((multiplier * largest).floor() - torch.arange(NUMERATORS, device=multiplier.device)).clamp_(min=1)
    nearest = (numerator / multiplier).sub_(1).div_(2).round_().mul_(2).add_(1)
    steps = 2 * torch.arange(-beside, beside + 1, device=multiplier.device)[:, None]
    denominator = (nearest[:, None] + steps).clamp_(min=1)
    return numerator[:, None].expand_as(denominator).flatten(1), denominator.flatten(1)


def clearance_asked(bits: int) -> float:
    """How far sums are to keep from a tie of a grid, in codes."""
    return min(CLEARANCE * 2.0**bits, MOST_CLEARANCE)


def largest_denominator(bits: int) -> int:
    """The largest q of which 1/2q is ``clearance_asked`` and more, whatever m's rounding makes of it."""
    return int(0.5 / (clearance_asked(bits) + ROUNDED * 2.0**bits))


def clearance(scale: Tensor, input_scale: Tensor, grids: list[QParams]) -> Tensor:
    """For each scale, any shape: the least |n·m − (k + ½)| over sums n, ties k and grids, in ``clearance_asked``."""
    found = torch.full(scale.shape, torch.inf, dtype=torch.float64, device=scale.device)
    for grid in grids:
        multiplier = _multiplier(scale, input_scale, grid).unsqueeze(-1)
        lowest = grid.qmin - int(grid.zero_point)
        ties = torch.arange(lowest, lowest + grid.qmax - grid.qmin, device=scale.device).double() + 0.5
        apart = (torch.round(ties / multiplier) * multiplier - ties).abs().amin(-1)
        found = torch.minimum(found, apart / clearance_asked(grid.bits))
    return found


def _rescale(layer: Layer, weight: IntQuantizer, scale: Tensor) -> None:
    """Give a layer's weight another scale, and its bias the grid that follows; codes stay."""
    old, weight.scale = weight.scale, scale
    if float((scale / old - 1).abs().max()) * 2**weight.bits < 0.5:  # then each code is the nearest on its new grid too
        weight(layer.weight.detach(), inplace=True)
    else:
        axis = int(isinstance(layer, TRANSPOSED))
        values = layer.weight.movedim(axis, 0) if scale.dim() else layer.weight[None]
        before, after = (part.reshape([-1] + [1] * (values.dim() - 1)) for part in (old, scale))
        values.div_(before).round_().mul_(after)  # q − z in between, whole numbers: exactly
    bias = getattr(layer, "bias_quantizer", None)
    if bias is not None and layer.bias is not None:
        layer.bias.copy_(bias.rescale(scale_of_outputs(layer, weight))(layer.bias))


def input_quantizer(model: QuantizedModel, node: fx.Node) -> fx.Node | None:
    """The call of the quantizer on whose one grid a simulated layer's input lies, None where there is none."""
    source = tensor_inputs(node)[0]
    while keeps_values(model, source):
        (source,) = kept_operands(model, source)
    return None if _gridded(model, source) is None else source


def input_scale(model: QuantizedModel, node: fx.Node) -> Tensor | None:
    """The scale of that grid."""
    source = input_quantizer(model, node)
    quantizer = None if source is None else _gridded(model, source)
    return None if quantizer is None else quantizer.scale


def _readers(model: QuantizedModel, node: fx.Node) -> Iterator[QParams]:
    """The grids that a layer's sums are put on as they are, or after ReLUs and what keeps values."""
    for user in node.users:
        quantizer = _gridded(model, user)
        if quantizer is not None:
            yield quantizer.qparams
        elif is_relu(model, user) or keeps_values(model, user) or is_concatenation(model, user):
            yield from _readers(model, user)


def _gridded(model: QuantizedModel, node: fx.Node) -> IntQuantizer | None:
    """The quantizer that a node calls, where it puts its input on one grid for the whole tensor."""
    quantizer = module_of(model, node)
    if not isinstance(quantizer, IntQuantizer) or not quantizer.needs_statistics or quantizer.axis is not None:
        return None
    return quantizer

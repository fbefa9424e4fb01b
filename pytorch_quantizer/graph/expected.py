"""Moments of a folded float network's tensors as far as its batch norms tell them, without a single image.
What is corrected with them is calibration/'s business; moments that are measured are quantization/statistics.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, fx

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.channel_clipped_relu import ChannelClippedReLU
from pytorch_quantizer.graph.channels import averages_places, by_groups, flattened_places
from pytorch_quantizer.graph.operations import (
    CHANNEL_KEEPING,
    SUBTRACTIONS,
    Layer,
    is_addition,
    is_concatenation,
    is_relu,
    keeps_values,
    module_of,
    operation,
    relu_ceiling,
    tensor_inputs,
)
from pytorch_quantizer.quantization.bias_correction import Moments

FARTHEST = 40.0  # deviations; the normal density is 0 in float64 from 39 on


def expected_moments(graph: fx.GraphModule) -> dict[fx.Node, Moments]:
    """Mean and deviation per channel, float64 [C], of each tensor of which the batch norms tell; others are absent.

    graph: folded. A layer that a norm was folded into has the norm's (``meta["normal"]``, fold.py). Behind it, as
    Nagel et al. (2019, section 4.2.1) do: a ReLU's input is taken as normal (clipped_normal_moments); the summands of
    an addition as independent: means and variances add; max-pooling as if it picked at random, which it doesn't: its
    mean is too low. An average over places keeps the mean and loses the deviation, NaN from there on. Channels are
    dimension 1; concatenated and flattened ones are followed. The network's input is unknown.
    """
    known: dict[fx.Node, Moments] = {}
    for node in graph.graph.nodes:
        moments = node.meta["normal"] if "normal" in node.meta else _moments_of(graph, node, known)
        if moments is not None:
            known[node] = moments
    return known


def clipped_normal_moments(normal: Moments, ceiling: Tensor | float | None = None) -> Moments:
    """Mean and deviation of min(max(x, 0), ceiling) for normal x, each [C]; ceiling: a number, [C], or None for none.

    With α = −μ/σ and β = (ceiling − μ)/σ, φ and Φ the standard normal's density and distribution function, and y
    counted from where μ itself ends up, m = min(max(μ, 0), ceiling), in units of σ, z = (m − μ)/σ:
    E y = (α − z)Φ(α) + (β − z)(1 − Φ(β)) + φ(α) − φ(β) − z(Φ(β) − Φ(α)),
    E y² = (α − z)²Φ(α) + (β − z)²(1 − Φ(β)) + (1 + z²)(Φ(β) − Φ(α)) + (α − 2z)φ(α) − (β − 2z)φ(β).
    Exact for a deviation of 0, and without cancellation where the clipping hardly matters.
    """
    mean, deviation = normal.mean.double(), normal.deviation.double()
    top = torch.as_tensor(math.inf if ceiling is None else ceiling, dtype=torch.float64, device=mean.device)
    middle = torch.minimum(mean.clamp(min=0), top)
    unit = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    low, high, z = (((edge - mean) / unit).clamp(-FARTHEST, FARTHEST) for edge in (torch.zeros_like(top), top, middle))
    below, above, inside = torch.special.ndtr(low), torch.special.ndtr(-high), _between(low, high)
    first = (low - z) * below + (high - z) * above + _density(low) - _density(high) - z * inside
    second = (low - z).square() * below + (high - z).square() * above + (1 + z.square()) * inside
    second = second + (low - 2 * z) * _density(low) - (high - 2 * z) * _density(high)
    spread = (second - first.square()).clamp(min=0).sqrt()
    return Moments(middle + deviation * first, deviation * spread)


def analytic_shift(layer: Layer, weight: Tensor, quantized_weight: Tensor, inputs: Moments) -> Tensor:
    """What to add to a layer's bias so that its outputs' means stay, float64 [C_out]: −Σ_i (W_q − W)_{c,i}·E[x_i].

    weight, quantized_weight: shaped as the layer's. inputs: the moments of what it reads, [C_in]; only the mean is
    used. Nagel et al. (2019), section 4.2; as if a convolution's padding had the inputs' mean too.
    Raises InputError where the means aren't one for each input channel.
    """
    error = by_groups(layer, quantized_weight.detach().double() - weight.detach().double()).sum(3)
    groups, _, own_inputs = error.shape
    if inputs.mean.numel() != groups * own_inputs:
        raise InputError(f"inputs must have a mean for each of {groups * own_inputs} channels, got {len(inputs.mean)}")
    mean = inputs.mean.to(error).reshape(groups, 1, own_inputs)
    return -(error * mean).sum(2).flatten()


def _between(low: Tensor, high: Tensor) -> Tensor:
    """Φ(high) − Φ(low), from the tail that is small."""
    upper = torch.special.ndtr(-low) - torch.special.ndtr(-high)
    return torch.where(low > 0, upper, torch.special.ndtr(high) - torch.special.ndtr(low))


def _density(z: Tensor) -> Tensor:
    return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)


Known = dict[fx.Node, Moments]


def _moments_of(graph: fx.GraphModule, node: fx.Node, known: Known) -> Moments | None:
    """A node's moments from those of what it reads, None where they don't tell."""
    sources = tensor_inputs(node)
    if not sources or any(source not in known for source in sources):
        return None
    for applies, rule in RULES:
        if applies(graph, node):
            return rule(graph, node, known)
    return None


def _relu(graph: fx.GraphModule, node: fx.Node, known: Known) -> Moments | None:
    [source] = tensor_inputs(node)
    if keeps_values(graph, node):  # of a tensor without negative values
        return known[source]
    if bool(known[source].deviation.isnan().any()):
        return None
    module = module_of(graph, node)
    ceiling = module.ceiling if isinstance(module, ChannelClippedReLU) else relu_ceiling(graph, node)
    return clipped_normal_moments(known[source], ceiling)


def _sum(graph: fx.GraphModule, node: fx.Node, known: Known) -> Moments | None:
    """Of two tensors of the same shape, or a tensor and a number; a tensor isn't independent of itself."""
    if len(node.args) != 2 or node.kwargs or node.args[0] is node.args[1]:
        return None
    sign = -1.0 if operation(graph, node) in SUBTRACTIONS else 1.0
    first, second = (_summand(operand, known) for operand in node.args)
    if first is None or second is None or not _are_alike(tensor_inputs(node), known):
        return None
    deviation = torch.hypot(first.deviation, second.deviation)
    return Moments(first.mean + sign * second.mean, deviation)


def _summand(operand: object, known: Known) -> Moments | None:
    if isinstance(operand, fx.Node):
        return known.get(operand)
    if not isinstance(operand, int | float):
        return None
    return Moments(torch.tensor(float(operand), dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))


def _are_alike(summands: list[fx.Node], known: Known) -> bool:
    """Whether the summands are of one shape, so that they are added place by place."""
    shapes = {(node.meta.get("shape"), known[node].mean.shape) for node in summands}
    return len(shapes) == 1


def _concatenation(graph: fx.GraphModule, node: fx.Node, known: Known) -> Moments | None:
    """Along the channels."""
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    dims = len(node.meta.get("shape") or ())
    if operation(graph, node) is torch.stack or axis not in (1, 1 - dims):
        return None
    parts = node.args[0]
    listed = [known[part] for part in parts if isinstance(part, fx.Node)] if isinstance(parts, tuple | list) else []
    return Moments(*(torch.cat(moments) for moments in zip(*listed, strict=True))) if listed else None


def _kept(graph: fx.GraphModule, node: fx.Node, known: Known) -> Moments | None:
    return known[tensor_inputs(node)[0]]


def _average(graph: fx.GraphModule, node: fx.Node, known: Known) -> Moments | None:
    mean = known[tensor_inputs(node)[0]].mean
    return Moments(mean, torch.full_like(mean, torch.nan))


def _flattened(graph: fx.GraphModule, node: fx.Node, known: Known) -> Moments | None:
    places = flattened_places(graph, node) or 1
    return Moments(*(moment.repeat_interleave(places) for moment in known[tensor_inputs(node)[0]]))


Rule = Callable[[fx.GraphModule, fx.Node, Known], Moments | None]
RULES: tuple[tuple[Callable[[fx.GraphModule, fx.Node], bool], Rule], ...] = (
    (is_relu, _relu),
    (is_addition, _sum),
    (is_concatenation, _concatenation),
    (lambda graph, node: operation(graph, node) in CHANNEL_KEEPING, _kept),
    (averages_places, _average),
    (lambda graph, node: flattened_places(graph, node) is not None, _flattened),
)

"""Some of the windows that a layer's weights see, of every image: for any convolution, transposed ones too, and linear.
All of them, of layers that torch unfolds: covariance.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytorch_quantizer.graph.channels import by_groups, from_groups
from pytorch_quantizer.graph.operations import TRANSPOSED, Layer


def sampled_windows(layer: Layer, x: Tensor, rows: int, first: int = 0) -> Tensor:
    """[G, R, K]: what weight_rows' columns are multiplied by, at the same places of each image, about ``rows`` in all.

    x: what the layer reads, [N, C, …] (a convolution) or [N, …, C] (linear). The places are spread evenly, from
    place ``first`` on. Tensors that belong to one another give rows that do.
    """
    places_an_image = max(1, -(-rows // max(1, len(x))))
    if isinstance(layer, nn.Linear):
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return tokens[:, _spread(tokens.shape[1], places_an_image, first)].flatten(0, 1).unsqueeze(0)
    view = _all_windows(layer, x)
    outputs = view.shape[2 : x.dim()]
    at = torch.unravel_index(_spread(outputs.numel(), places_an_image, first), outputs)
    everything: Any = (slice(None), slice(None), *(index.to(x.device) for index in at))
    found = view[everything]  # [N, C, P, k…]
    found = found.unflatten(1, (layer.groups, -1)).flatten(4)
    return found.permute(1, 0, 3, 2, 4).flatten(1, 2).flatten(2)


def padded_size(layer: Any, read: Sequence[int]) -> int:
    """How many values of an image the largest tensor has that ``sampled_windows`` makes of what it looks at.

    read: the shape [N, …] of what the layer reads.
    """
    if isinstance(layer, nn.Linear):
        return math.prod(read[1:])
    spread, padding = list(read[2:]), layer._reversed_padding_repeated_twice
    if isinstance(layer, TRANSPOSED):
        spread, padding = _spread_sizes(layer, read), _stuffing(layer)
    around = [first + last for first, last in zip(padding[::2], padding[1::2], strict=True)]
    padded = [size + more for size, more in zip(spread, reversed(around), strict=True)]
    return read[1] * max(math.prod(spread), math.prod(padded))


def weight_rows(layer: Layer, weight: Tensor) -> Tensor:
    """[G, R, K]: a layer's weight as rows, one an output channel of each group; a transposed one's kernel turned."""
    grouped = by_groups(layer, weight)
    return (grouped.flip(3) if isinstance(layer, TRANSPOSED) else grouped).flatten(2)


def weight_of_rows(layer: Layer, rows: Tensor) -> Tensor:
    """The inverse of ``weight_rows``: the weight in its own shape."""
    grouped = rows.unflatten(2, by_groups(layer, layer.weight).shape[2:])
    return from_groups(layer, grouped.flip(3) if isinstance(layer, TRANSPOSED) else grouped)


def _spread(count: int, wanted: int, first: int) -> Tensor:
    """``wanted`` of the numbers below ``count``, evenly spread from ``first`` on, or all of them."""
    if wanted >= count:
        return torch.arange(count)
    return (torch.arange(wanted) * count // wanted + first) % count


def _all_windows(layer: Any, x: Tensor) -> Tensor:
    """[N, C, O…, k…]: a view of every window of a padded input."""
    padded, strides = _stuffed(layer, x) if isinstance(layer, TRANSPOSED) else (_padded(layer, x), layer.stride)
    for dim, (size, step, gap) in enumerate(zip(layer.kernel_size, strides, layer.dilation, strict=True)):
        padded = padded.unfold(2 + dim, (size - 1) * gap + 1, step)
    return padded[_every(layer.dilation)]


def _every(steps: Sequence[int]) -> Any:
    """The index that takes every so many of each of the last dimensions."""
    return (..., *(slice(None, None, step) for step in steps))


def _padded(layer: Any, x: Tensor) -> Tensor:
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)


def _stuffed(layer: Any, x: Tensor) -> tuple[Tensor, Sequence[int]]:
    """The input of the plain convolution that a transposed one is, and its strides: zeros between values and around."""
    spread = x.new_zeros(*x.shape[:2], *_spread_sizes(layer, x.shape))
    spread[_every(layer.stride)] = x
    return F.pad(spread, _stuffing(layer)), [1] * (x.dim() - 2)


def _spread_sizes(layer: Any, read: Sequence[int]) -> list[int]:
    """The sizes of an input with zeros between its values."""
    return [(size - 1) * step + 1 for size, step in zip(read[2:], layer.stride, strict=True)]


def _stuffing(layer: Any) -> list[int]:
    """The zeros around it, as F.pad has them."""
    padding: list[int] = []
    for size, gap, pad, more in zip(
        layer.kernel_size, layer.dilation, layer.padding, layer.output_padding, strict=True
    ):
        around = gap * (size - 1) - int(pad)
        padding = [around, around + more, *padding]  # torch wants the last dimension first
    return padding

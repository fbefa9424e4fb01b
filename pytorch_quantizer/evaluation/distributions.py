"""How a tensor's values lie over its quantizer's grid, as numbers that a picture can be drawn from.
Drawing is reports/' business; what quantization costs a tensor is layers.py's.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer.quantization.histogram import Histogram
from pytorch_quantizer.quantization.qtypes import IntQuantizer, Quantizer

MOST_BINS, FEWEST_BINS = 512, 64
ALL_BINS = 2**16  # of a network's tensors together: half a megabyte as text
MOST_LEVELS = 64  # that a picture can show apart
PROBES = 2**14  # values over a range that levels of any number type are found by
VALUE, CODE = "value", "code"


def bins_of_each(tensors: int) -> int:
    """How many bins, a power of two, each of so many tensors may have."""
    bins = MOST_BINS
    while bins > FEWEST_BINS and bins * tensors > ALL_BINS:
        bins //= 2
    return bins


@torch.no_grad()
def distribution(name: str, kind: str, quantizer: Quantizer, x: Tensor, bins: int = MOST_BINS) -> dict[str, Any]:
    """The histogram of x, any shape, and the range and levels of its quantizer, as plain numbers.

    unit: "value", x as it is, or where each channel has a uniform grid of its own "code", x / s_c + z_c before
    rounding: there one grid serves all channels. low, high: the representable range. step: of a uniform grid, else
    None. levels: what the quantizer can give, ascending, where they are at most MOST_LEVELS and every channel's, else
    None. histogram: Histogram.to_dict's, of at most ``bins`` bins, fewer of few values.
    """
    entry: dict[str, Any] = {"name": name, "kind": kind, "type": quantizer.describe()}
    if isinstance(quantizer, IntQuantizer) and quantizer.scale is not None and quantizer.scale.dim():
        entry |= _on_codes(quantizer)
        x = _as_codes(quantizer, x)
    else:
        entry |= _on_values(quantizer, x.device)
    histogram = Histogram.from_tensor(x.detach().float()).with_bins(min(bins, _worth_having(x.numel())))
    return entry | {"histogram": histogram.to_dict()}


def _worth_having(values: int) -> int:
    """Bins of a histogram of so many values, of which the data fill a quarter or more: Rice's rule for that half."""
    wanted = max(FEWEST_BINS // 2, 4 * values ** (1 / 3))
    return 2 ** math.ceil(math.log2(wanted))


def _on_codes(quantizer: IntQuantizer) -> dict[str, Any]:
    levels = list(range(quantizer.qmin, quantizer.qmax + 1))
    shown = levels if len(levels) <= MOST_LEVELS else None
    return {"unit": CODE, "low": float(levels[0]), "high": float(levels[-1]), "step": 1.0, "levels": shown}


def _as_codes(quantizer: IntQuantizer, x: Tensor) -> Tensor:
    """x / s_c + z_c along the quantizer's axis."""
    axis = (quantizer.axis or 0) % x.dim()
    shape = [-1 if dim == axis else 1 for dim in range(x.dim())]
    return x / quantizer.scale.reshape(shape) + quantizer.zero_point.reshape(shape)


def _on_values(quantizer: Quantizer, device: torch.device) -> dict[str, Any]:
    low, high = (float(end) for end in _widest(quantizer))
    uniform = isinstance(quantizer, IntQuantizer) and quantizer.scale is not None
    step = float(quantizer.scale) if uniform else None
    return {"unit": VALUE, "low": low, "high": high, "step": step, "levels": _levels(quantizer, low, high, device)}


def _widest(quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    low, high = quantizer.range()
    return low.min(), high.max()


def _levels(quantizer: Quantizer, low: float, high: float, device: torch.device) -> list[float] | None:
    """The values that a grid of the whole tensor can give, found by asking; None where there are many, or several."""
    if quantizer.blocked or getattr(quantizer, "axis", None) is not None or 2**quantizer.bits > MOST_LEVELS:
        return None
    asked = torch.linspace(low, high, PROBES, device=device)
    found = copy.deepcopy(quantizer)(asked).unique()  # a copy: stochastic rounding counts what it drew
    return found.tolist() if len(found) <= MOST_LEVELS else None

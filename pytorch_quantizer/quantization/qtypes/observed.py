"""What a number type is fitted to: checked statistics, and a tensor or a histogram as weighted points of each channel.
Ranges are chosen in clipping.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.clipping import Domain, choose_range
from pytorch_quantizer.quantization.qparams import GridSpec
from pytorch_quantizer.quantization.statistics import TensorStatistics, check_observed

if TYPE_CHECKING:
    from pytorch_quantizer.quantization.qtypes.format_quantizer import FormatQuantizer


def weighted_points(
    statistics: TensorStatistics, x: Tensor | None, *, axis: int | None, domain: Domain, family: str
) -> tuple[Tensor, Tensor | None]:
    """The values that a type is to represent, [C, n] (C = 1 per tensor), and how often each was seen, None for once.

    They are x's own where there is an x (x's dtype); else the middles of the histogram's bins, float64, within the
    range observed of the tensor itself. A ReLU that the domain tells of is applied, as x and the statistics are its
    input's.
    Raises InputError that names the remedy where the statistics hold no histogram.
    """
    check_observed(statistics)
    if x is not None:
        rows = x.reshape(1, -1) if axis is None else x.movedim(axis, 0).flatten(1)
        return (rows.clamp(0, domain.upper) if domain.support == "rectified" else rows), None
    histogram = statistics.histogram
    if histogram is None:
        raise InputError(
            f"{family} is fitted to a tensor or to statistics that hold a histogram, and these don't; "
            "measure them with TensorStatistics.from_tensor(x, histogram=True)"
        )
    low, high = domain.observed(statistics)
    centres = torch.maximum(torch.minimum(histogram.centres(), high[..., None]), low[..., None])
    zeros = histogram.zeros[..., None]
    values = torch.cat([centres, torch.zeros_like(zeros, dtype=torch.float64)], dim=-1)
    counts = torch.cat([histogram.counts, zeros], dim=-1).double()
    return values.reshape(-1, values.shape[-1]), counts.reshape(-1, counts.shape[-1])


def clipped_extent(statistics: TensorStatistics, quantizer: FormatQuantizer) -> Tensor:
    """max(|lo|, |hi|) of the range that the quantizer's clipping chooses, float64, [] or [C]."""
    grid = GridSpec(max(quantizer.bits, 2), signed=quantizer.domain.support == "real", symmetric=True)
    low, high = choose_range(
        statistics,
        method=quantizer.clip,
        grid=grid,
        domain=quantizer.domain,
        across_batches=quantizer.across_batches,
    )
    return torch.maximum(low.abs(), high.abs())

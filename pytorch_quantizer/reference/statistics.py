"""tensor_statistics and histogram in plain PyTorch."""

import torch
from torch import Tensor


@torch.no_grad()
def tensor_statistics(x: Tensor, *, axis: int | None = None) -> Tensor:
    """Compute the rows of `ops.STATISTICS` in float64: [9], or [9, C] along `axis`."""
    statistics = _row_statistics(_rows(x, axis))
    return statistics[:, 0] if axis is None else statistics


def _rows(x: Tensor, axis: int | None) -> Tensor:
    """[C, n] in float64; C is 1 where there is no axis."""
    channels = x[None] if axis is None else x.movedim(axis, 0)
    return (channels.flatten(1) if channels.dim() > 1 else channels[:, None]).to(torch.float64)


def _row_statistics(rows: Tensor) -> Tensor:
    """[C, n] → [9, C]. Adding 0.0 to min and max makes −0 and +0 the same number."""
    n = rows.shape[1]
    count, positive = rows.new_full(rows.shape[:1], n), rows > 0
    low = rows.amin(1) + 0.0 if n else torch.full_like(count, torch.inf)
    high = rows.amax(1) + 0.0 if n else torch.full_like(count, -torch.inf)
    mean = rows.sum(1) / max(n, 1)
    centred = rows - mean[:, None]
    abs_dev, variance = centred.abs().sum(1) / max(n, 1), centred.square().sum(1) / max(n, 1)
    kept, positive_count = torch.where(positive, rows, 0.0), positive.sum(1).to(torch.float64)
    positive_mean, positive_square = (k.sum(1) / positive_count.clamp(min=1) for k in (kept, kept.square()))
    return torch.stack([count, low, high, mean, abs_dev, variance, positive_count, positive_mean, positive_square])


def histogram(x: Tensor, exponent: Tensor, *, bins: int, axis: int | None = None) -> Tensor:
    """Count values in bins of width 2^k: int64 [bins + 2], or [C, bins + 2] along `axis`; zeros, then those outside.

    In float64, where the product with a power of two is exact for every float32.
    """
    rows = _rows(x, axis)
    place = torch.floor(torch.ldexp(rows, -exponent.reshape(-1, 1))) + bins // 2
    place = torch.where((place >= 0) & (place < bins), place, bins + 1.0)
    place = torch.where(rows == 0, float(bins), place).to(torch.int64)
    counts = place.new_zeros(rows.shape[0], bins + 2).scatter_add_(1, place, torch.ones_like(place))
    return counts[0] if axis is None else counts


@torch.no_grad()
def growing_histogram(
    x: Tensor, largest: Tensor, counts: Tensor, exponent: Tensor, *, axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return (counts, exponent) with x added, the bins doubled in width until they hold `largest`."""
    bins, finite = counts.shape[-1] - 2, torch.isfinite(largest)
    needed = torch.frexp(torch.where(finite, largest, 0.0)).exponent.to(torch.int64) - (bins.bit_length() - 2)
    wide = torch.where(finite & (largest > 0), torch.maximum(exponent, needed.clamp(min=-126)), exponent)
    index = torch.arange(bins, device=x.device) - bins // 2
    target = (index >> (wide - exponent)[..., None].clamp(max=62)) + bins // 2
    folded = torch.zeros_like(counts).index_copy_(-1, torch.arange(bins, bins + 2, device=x.device), counts[..., bins:])
    folded.scatter_add_(-1, target, counts[..., :bins].contiguous())
    return folded + histogram(x, wide, bins=bins, axis=axis) * finite[..., None], wide

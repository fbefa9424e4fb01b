"""The codebook quantizer in plain PyTorch."""

import torch
from torch import Tensor


def _rows(x: Tensor, axis: int | None) -> Tensor:
    """The values that share levels, a row each: [1, n], or [C, n] along `axis`; contiguous."""
    moved = x.reshape(1, -1) if axis is None else x.movedim(axis, 0)
    return moved.reshape(moved.shape[0], x.numel() // max(moved.shape[0], 1)).contiguous()


def _like(x: Tensor, rows: Tensor, axis: int | None, dtype: torch.dtype) -> Tensor:
    """What `_rows` made of x, in x's shape and layout again."""
    y = rows.reshape(x.shape) if axis is None else rows.reshape(x.movedim(axis, 0).shape).movedim(0, axis)
    return torch.empty_like(x, dtype=dtype).copy_(y)


def _table(entries: Tensor) -> Tensor:
    """Levels or thresholds, a row a channel: [K] → [1, K]."""
    return (entries if entries.dim() == 2 else entries[None]).contiguous()


@torch.no_grad()
def codebook_fake_quantize(
    x: Tensor, levels: Tensor, highest: Tensor, *, axis: int | None = None, out: Tensor | None = None
) -> Tensor:
    """Compute y = levels[#(highest < x)] in float32, rounded once to x's dtype; NaN stays NaN. No graph."""
    rows = _rows(x.to(torch.float32), axis)
    nearest = _table(levels).gather(1, torch.searchsorted(_table(highest), rows))
    y = _like(x, torch.where(rows.isnan(), rows, nearest), axis, x.dtype)
    return y if out is None else out.copy_(y)


@torch.no_grad()
def codebook_quantize(x: Tensor, highest: Tensor, *, axis: int | None = None) -> Tensor:
    """Compute the indices #(highest < x), uint8, laid out as x; NaN has none and takes that of 0."""
    rows = _rows(x.to(torch.float32), axis)
    index = torch.searchsorted(_table(highest), torch.where(rows.isnan(), 0.0, rows))
    return _like(x, index, axis, torch.uint8)


@torch.no_grad()
def codebook_dequantize(
    codes: Tensor, levels: Tensor, *, axis: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Compute y = levels[code], rounded once to `dtype`; NaN where there is no such level."""
    index, count = _rows(codes, axis).to(torch.int64), levels.shape[-1]
    y = _table(levels).gather(1, index.clamp(max=count - 1))
    return _like(codes, torch.where(index < count, y, torch.nan), axis, dtype)

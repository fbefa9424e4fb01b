"""What calibration reads of a tensor: tensor_statistics and histogram."""

import torch
from torch import Tensor

from pytorch_quantizer.backend import raw
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.ops.arguments import check_float, dimension

MAX_BINS = 2**24
STATISTICS = (
    "count",
    "min",
    "max",
    "mean",
    "abs_dev",
    "variance",
    "positive_count",
    "positive_mean",
    "positive_mean_square",
)


def tensor_statistics(x: Tensor, *, axis: int | None = None) -> Tensor:
    """Measure what calibration needs of one tensor, in at most two reads: float64 [9], or [9, C] along `axis`.

    Rows, as in STATISTICS: count, min, max, mean μ, E|x − μ|, variance E(x − μ)², and of the positive part its count,
    E[x | x > 0] and E[x² | x > 0]. Empty: count 0, min +inf, max −inf, the rest 0. NaN makes min, max, mean, abs_dev
    and variance NaN. Sums are float64 over fixed chunks in a fixed order: the same bits for any number of threads.
    x: float32, float16 or bfloat16, any layout. Not differentiable. Raises InputError where an argument doesn't fit.
    """
    check_float("x", x)
    raw_axis = -1 if axis is None else dimension(x, axis)
    return raw.tensor_statistics.default(x.detach(), raw_axis)


def histogram(x: Tensor, exponent: Tensor, *, bins: int, axis: int | None = None) -> Tensor:
    """Count values in bins of width 2^k, in one read: int64 [bins + 2], or [C, bins + 2] along `axis`.

    Entry i < bins: x in [(i − bins/2)·2^k, (i + 1 − bins/2)·2^k), exactly, zeros left out. Then the exact zeros, then
    what lies in no bin, NaN with it. exponent: k, int64 [] or [C], −126 to 127. bins: a power of two, 2 to 2^24.
    x: float32, float16 or bfloat16, any layout. Not differentiable. Raises InputError where an argument doesn't fit.
    """
    check_float("x", x)
    raw_axis = -1 if axis is None else dimension(x, axis)
    shape = [] if axis is None else [x.shape[raw_axis]]
    if exponent.dtype != torch.int64 or list(exponent.shape) != shape or exponent.device != x.device:
        found = f"{exponent.dtype} {list(exponent.shape)} on {exponent.device}"
        raise InputError(f"exponent must be int64 {shape} on x's device {x.device}, got {found}")
    _check_bins(bins)
    return raw.histogram.default(x.detach(), exponent, bins, raw_axis)


def growing_histogram(
    x: Tensor, counts: Tensor, exponent: Tensor, *, largest: Tensor, axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """Add x to what `histogram` counted before, on bins as wide as x needs: (counts, exponent), both new.

    counts, exponent: as `histogram` gives and takes them; for a start zeros and −126. largest: max |x|, float32, [] or
    [C]. Bins double in width, two becoming one exactly, until |x| < bins/2·2^k; they never shrink. A channel whose
    `largest` is NaN or infinite stays as it is. Nothing waits for the device. Not differentiable.
    Raises InputError where an argument doesn't fit.
    """
    _check_float_and_histogram(x, counts, exponent, largest, axis)
    raw_axis = -1 if axis is None else dimension(x, axis)
    return raw.growing_histogram.default(x.detach(), largest, counts, exponent, raw_axis)


def _check_float_and_histogram(x: Tensor, counts: Tensor, exponent: Tensor, largest: Tensor, axis: int | None) -> None:
    check_float("x", x)
    shape = [] if axis is None else [x.shape[dimension(x, axis)]]
    bins = counts.shape[-1] - 2 if counts.dim() else 0
    expected = {
        "counts": (counts, torch.int64, [*shape, bins + 2]),
        "exponent": (exponent, torch.int64, shape),
        "largest": (largest, torch.float32, shape),
    }
    for name, (tensor, dtype, wanted) in expected.items():
        if tensor.dtype != dtype or list(tensor.shape) != wanted or tensor.device != x.device:
            found = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            raise InputError(f"{name} must be {dtype} {wanted} on x's device {x.device}, got {found}")
    _check_bins(bins)


def _check_bins(bins: int) -> None:
    if not 2 <= bins <= MAX_BINS or bins & (bins - 1):
        raise InputError(f"bins must be a power of two from 2 to {MAX_BINS}, got {bins}")


@torch.library.register_fake("pytorch_quantizer::growing_histogram")
def _(x: Tensor, largest: Tensor, counts: Tensor, exponent: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    return counts.new_empty(counts.shape), exponent.new_empty(exponent.shape)


@torch.library.register_fake("pytorch_quantizer::tensor_statistics")
def _(x: Tensor, axis: int) -> Tensor:
    shape = (len(STATISTICS),) if axis < 0 else (len(STATISTICS), x.shape[axis])
    return x.new_empty(shape, dtype=torch.float64)


@torch.library.register_fake("pytorch_quantizer::histogram")
def _(x: Tensor, exponent: Tensor, bins: int, axis: int) -> Tensor:
    return x.new_empty((bins + 2,) if axis < 0 else (x.shape[axis], bins + 2), dtype=torch.int64)

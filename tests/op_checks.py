"""Checks of the ops on one tensor, used by several of their tests."""

import numpy as np
import torch
from hard_inputs import assert_same, hard_grid

from pytorch_quantizer import ops, reference

INT = torch.int32
AXES = (None, 0, 1, 2, -1)
RANDOM = {"seed": 2**40 + 7, "offset": 2**33 - 100}  # an offset whose counters cross a 32-bit word
raw = torch.ops.pytorch_quantizer


def both(name, x, *args, **keywords):
    """The op's result and the reference's."""
    return getattr(ops, name)(x, *args, **keywords), getattr(reference, name)(x, *args, **keywords)


def gradients(x, grad, grid, axis, rounding):
    leaf = x.detach().requires_grad_()
    y = ops.fake_quantize(leaf, *grid, axis=axis, rounding=rounding, **RANDOM)
    (dx,) = torch.autograd.grad(y, leaf, grad)
    keywords = {"axis": axis, "rounding": rounding} | RANDOM
    return dx, reference.fake_quantize_backward(grad, leaf, *grid, **keywords)


def check_all(x, axis, rounding, qmin=0, qmax=15):
    """Every elementwise op on x equals the reference to the bit."""
    grid = (*hard_grid(x, axis, qmin, qmax), qmin, qmax)
    assert_same(*both("fake_quantize", x, *grid, axis=axis, rounding=rounding, **RANDOM))
    codes, expected = both("quantize", x, *grid, axis=axis, rounding=rounding, **RANDOM)
    assert_same(codes, expected)
    assert_same(*both("dequantize", codes, *grid[:2], axis=axis, dtype=x.dtype))
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    assert_same(*gradients(x, grad, grid, axis, rounding))


def check_ties(device):
    """Ties, the numbers next to them, and odd numbers so large that adding a half would round them."""
    ties = torch.arange(-300, 300) + 0.5
    up, down = torch.tensor(1e9), torch.tensor(-1e9)
    x = torch.cat([ties, torch.nextafter(ties, up), torch.nextafter(ties, down), torch.arange(-9.0, 9.0) + 2.0**23])
    unit = torch.tensor(1.0, device=device), torch.tensor(0, dtype=INT, device=device)
    for rounding in ops.ROUNDINGS:
        assert_same(*both("quantize", x.to(device), *unit, -(2**24), 2**24, rounding=rounding))


def check_half_ties(device):
    """Results halfway between two float16 or bfloat16 numbers, subnormal ones and the step to infinity included."""
    codes = torch.arange(-128, 128, dtype=torch.int16, device=device)
    for scale in (
        1 + 2.0**-11,
        1 + 3 * 2.0**-11,
        1 + 2.0**-8,
        1 + 3 * 2.0**-8,
        2.0**-25,
        3 * 2.0**-25,
        65520.0,
        65519.0,
    ):
        grid = torch.tensor(scale, device=device), torch.tensor(0, dtype=INT, device=device)
        exact = reference.dequantize(codes, *grid)
        for dtype in (torch.float16, torch.bfloat16):
            assert_same(ops.dequantize(codes, *grid, dtype=dtype), exact.to(dtype))


def check_histograms(x, axis, exponents, bins=2048):
    """Counts equal the reference's, every value counted once."""
    shape = [] if axis is None else [x.shape[axis]]
    for exponent in exponents:
        each = torch.full(shape, exponent, device=x.device)
        if axis is not None and exponent < 120:
            each += torch.arange(shape[0], device=x.device) % 3
        got, expected = both("histogram", x, each, bins=bins, axis=axis)
        assert_same(got, expected)
        assert got.sum() == x.numel()


def check_statistics(x, axis):
    """Counts, min and max exactly; sums within 1e-12 of Σ|terms| of a float64 sum over the same elements."""
    rows = x.double().cpu().numpy()
    rows = rows.reshape(1, -1) if axis is None else np.moveaxis(rows, axis, 0).reshape(x.shape[axis], -1)
    got = ops.tensor_statistics(x, axis=axis).cpu().numpy().reshape(9, -1)
    n = rows.shape[1]
    positive = np.where(rows > 0, rows, 0)
    count = (rows > 0).sum(1)
    centred = rows - rows.mean(1, keepdims=True)
    assert (got[0] == n).all()
    assert (got[1] == rows.min(1)).all()
    assert (got[2] == rows.max(1)).all()
    assert (got[6] == count).all()
    sums = {3: (rows, n), 4: (np.abs(centred), n), 5: (centred**2, n), 7: (positive, count), 8: (positive**2, count)}
    for row, (terms, divisor) in sums.items():
        # |x − mean| inherits the mean's own error, hence the magnitudes of x among the terms of rows 4 and 5.
        magnitude = np.abs(terms).sum(1) + (np.abs(rows).sum(1) if row in (4, 5) else 0)
        error = np.abs(got[row] * divisor - terms.sum(1))
        assert (error <= 1e-12 * magnitude).all(), ops.STATISTICS[row]

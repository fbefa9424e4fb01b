"""Generators of hard inputs for the ops, and what 'the same to the bit' means."""

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# What breaks quantizers: signed zeros, subnormals, the largest and smallest, infinities, NaN, and numbers whose
# neighbours decide (0.49999997 must not round up, 8388609 is odd and has no fraction).
SPECIAL = (0.0, -0.0, 1e-45, -1e-40, 1.17549435e-38, 3.4e38, -3.4e38, 1e30, -1e30, 0.49999997, -0.49999997, 8388609.0)
SPECIAL += (-8388609.0, 16777216.0, float("inf"), -float("inf"), float("nan"))


def assert_same(actual, expected):
    """Equal to the bit, in shape, dtype and layout; a NaN equals any NaN, but -0 isn't +0."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.stride() == expected.stride()
    a, e = actual.cpu(), expected.cpu()
    if a.dtype.is_floating_point:
        assert torch.equal(a.isnan(), e.isnan())
        assert torch.equal(torch.signbit(a) & ~a.isnan(), torch.signbit(e) & ~e.isnan())
        a, e = a.nan_to_num(nan=0.0), e.nan_to_num(nan=0.0)
    assert torch.equal(a, e)


def hard_values(n, scale=0.75, dtype=torch.float32, seed=0):
    """n numbers: the special ones, then ties (k + 1/2)·s exactly, then noise; all in random order."""
    generator = torch.Generator().manual_seed(seed)
    ties = (torch.arange(-(n // 3) // 2, n // 6) + 0.5) * scale
    values = torch.cat([torch.tensor(SPECIAL), ties, torch.randn(n, generator=generator) * 8 * scale])[:n]
    return values[torch.randperm(n, generator=generator)].to(dtype)


def _strided(x):
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 7.0, dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


# A tensor [3, 19, 5, 23] of each layout that takes a different path: odd sizes, off every vector width.
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.permute(3, 1, 0, 2),
    "strided": _strided,
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "expanded": lambda x: x[:, :1].expand(x.shape),
    "sliced": lambda x: x[:, 1:18, 1:4],
}


def hard_tensor(layout, dtype=torch.float32, device="cpu", seed=0):
    """A 4-dimensional tensor of hard values in one of LAYOUTS."""
    return LAYOUTS[layout](hard_values(3 * 19 * 5 * 23, dtype=dtype, seed=seed).view(3, 19, 5, 23).to(device))


def hard_grid(x, axis, qmin=0, qmax=15, scale=0.75):
    """Scales and zero points for x: exact multiples of `scale`, so that ties stay ties; one channel's scale invalid."""
    if axis is None:
        return torch.tensor(scale, device=x.device), torch.tensor(
            (qmin + qmax) // 2, dtype=torch.int32, device=x.device
        )
    channels = x.shape[axis]
    scales = scale * 2.0 ** (torch.arange(channels) % 5 - 2)
    if channels > 4:
        scales[4] = (0.0, -1.0, float("inf"), float("nan"))[channels % 4]
    zero_points = (qmin + torch.arange(channels) % (qmax - qmin + 1)).to(torch.int32)
    return scales.to(x.device), zero_points.to(x.device)


def cut_tensors():
    """(x, axis) whose channels are cut into chunks in every way: by channel or by run, in pieces of unlike length."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 9003, generator=generator)
    short = torch.randn(3, 40, 500, generator=generator), torch.randn(60, 3, 301, generator=generator)
    yield x[:, :, :9000].contiguous(), 1
    yield x[:, :, :600], 0
    yield x[:, :, :9000], 0
    yield short[0][:, :, :301], 0
    yield short[1], 1

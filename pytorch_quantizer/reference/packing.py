"""Dense packing of integer codes in plain PyTorch."""

import torch
from torch import Tensor


def _places(n: int, like: Tensor) -> Tensor:
    return torch.arange(n, dtype=torch.int32, device=like.device)


@torch.no_grad()
def pack(codes: Tensor, bits: int, *, out: Tensor | None = None) -> Tensor:
    """Write the low `bits` of each code, in row-major order, as a little-endian bit stream: uint8 [⌈n·bits/8⌉]."""
    stream = (codes.reshape(-1, 1).to(torch.int32) >> _places(bits, codes) & 1).flatten()
    stream = torch.nn.functional.pad(stream, (0, -stream.numel() % 8)).view(-1, 8)
    packed = (stream << _places(8, codes)).sum(1).to(torch.uint8)
    return packed if out is None else out.copy_(packed)


@torch.no_grad()
def unpack(
    packed: Tensor, bits: int, numel: int, *, signed: bool, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """Read `numel` codes of `bits` bits back, two's complement if `signed`: [numel], or into `out` of any shape."""
    stream = (packed.reshape(-1, 1).to(torch.int32) >> _places(8, packed) & 1).flatten()[: numel * bits]
    codes = (stream.view(numel, bits) << _places(bits, packed)).sum(1)
    if signed:
        codes = torch.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)
    return codes.to(dtype) if out is None else out.copy_(codes.view(out.shape))

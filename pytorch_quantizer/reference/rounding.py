"""Rounding to whole numbers: half to even, half away from zero, stochastic."""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def uniform24(shape: torch.Size, seed: int, offset: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2⁻²⁴, float32 of `shape`: Philox4x32-10 (Salmon et al. 2011).

    The element at row-major index i takes counter (lo32(n), hi32(n), 0, 0), n = offset + i mod 2⁶⁴, key (lo32(seed),
    hi32(seed)) and, of the four words that come out, the upper 24 bits of the first.
    """
    counter = torch.arange(shape.numel(), dtype=torch.int64, device=device).view(shape) + offset
    a, b = counter & _WORD, (counter >> 32) & _WORD
    c, d = torch.zeros_like(a), torch.zeros_like(a)
    key_a, key_b = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        low, high = a * 0xD2511F53, c * 0xCD9E8D57  # wrap modulo 2⁶⁴: the mask after the shift undoes the sign
        a, b, c, d = ((high >> 32) & _WORD) ^ b ^ key_a, high & _WORD, ((low >> 32) & _WORD) ^ d ^ key_b, low & _WORD
        key_a, key_b = (key_a + 0x9E3779B9) & _WORD, (key_b + 0xBB67AE85) & _WORD
    return (a >> 8).to(torch.float32) * 2.0**-24


def round_to_integer(v: Tensor, rounding: str, seed: int, offset: int) -> Tensor:
    """Round float32 v to whole numbers; `seed` and `offset` matter to stochastic rounding alone."""
    if rounding == "half_even":
        return torch.round(v)
    if rounding == "half_away":
        whole = torch.trunc(v)
        return whole + torch.where((v - whole).abs() >= 0.5, torch.sign(v), torch.zeros_like(v))
    below = torch.floor(v)
    return below + (uniform24(v.shape, seed, offset, v.device) < v - below).to(v.dtype)

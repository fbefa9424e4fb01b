"""In which type weights of 8 bits and fewer are exported, and why: exact on this CPU, and fast where it can be both."""

from __future__ import annotations

import platform
from pathlib import Path

from pytorch_quantizer.errors import InputError

WEIGHT_TYPES = ("auto", "int8", "uint8")
FITTING_BITS = 7  # two products u8·s7 fit into the 16 bits that CPUs without VNNI add pairs of them up in
X86 = ("x86_64", "amd64", "i386", "i686")


def check_weight_type(asked: str) -> str:
    """The type asked for. Raises InputError where it is none."""
    if asked not in WEIGHT_TYPES:
        raise InputError(f"weight_type must be one of {', '.join(WEIGHT_TYPES)}, got {asked!r}")
    return asked


def weight_type(asked: str, bits: int, *, exact: bool) -> str:
    """int8 or uint8 for a weight of so many bits, 8 or fewer. exact: whether this CPU adds u8·s8 up exactly."""
    if asked != "auto":
        return asked
    return "int8" if bits <= FITTING_BITS or exact else "uint8"


def why(asked: str, types: set[str], *, exact: bool) -> str:
    """The choice in a sentence. types: those that the weights came to."""
    if not types & {"int8", "uint8"}:
        return "no weights of 8 bits or fewer as codes"
    if asked == "int8":
        saturating = "weights of 8 bits may saturate on x86 CPUs without VNNI, of which this is one"
        return f"int8 as asked: {'exact on this CPU' if exact else saturating}"
    if asked == "uint8":
        return "uint8 as asked: exact on every CPU, slower where there is no VNNI"
    if "uint8" in types:
        return "uint8 for weights of 8 bits: this CPU has no VNNI and would saturate with int8, which is faster"
    if not exact:
        return f"int8: weights of {FITTING_BITS} bits or fewer are exact and fast on every CPU"
    return "int8: this CPU adds u8·s8 up exactly"


def adds_exactly() -> bool:
    """Whether this CPU's kernels add products u8·s8 up in 32 bits: VNNI on x86, every other kind of CPU."""
    if platform.machine().lower() not in X86:
        return True
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return bool({"avx512_vnni", "avx_vnni"} & set(flags))

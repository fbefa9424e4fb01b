"""The bars of the kernels, on the rows of bench_kernels.py."""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

from bars import Rule

CPU, CUDA = 50_000_000, 2**28  # elements: 1 GB of float32 on CUDA
LARGE = 2**16  # elements, from which on no call's cost excuses anything

LAYOUTS = ("contiguous", "channels_last")
FORWARD = ("fake_quantize", "fake_quantize axis 0", "fake_quantize axis 1")
BACKWARD = tuple(
    f"{op}{axis}"
    for op in ("fake_quantize_backward", "learnable_fake_quantize_backward")
    for axis in ("", " axis 0", " axis 1")
)
STATISTICS = ("tensor_statistics", "tensor_statistics axis 0", "tensor_statistics axis 1")


def rules() -> list[Rule]:
    """All of them."""
    return [*cpu_rules(), *call_rules(), *cuda_rules()]


def on(device: str, op: str, dtype: str = "float32", layout: str = "contiguous") -> dict[str, Any]:
    """What a rule's rows have in common."""
    return {"op": op, "dtype": dtype, "layout": layout, "device": device}


def cpu_rules() -> Iterator[Rule]:
    """float32, 50 M elements, preallocated output where the op takes one."""
    at = partial(Rule, elements=(LARGE, CPU))
    for op, layout in product(FORWARD, LAYOUTS):
        per_tensor = op == FORWARD[0]
        yield at(on("cpu", op, layout=layout), "time", "copy", 1.5 if per_tensor else 1.6)
        yield at(on("cpu", op, layout=layout), "speed", "torch", 20)
        for dtype in ("float16", "bfloat16"):
            yield at(on("cpu", op, dtype, layout), "time", "copy", 1.8)
    yield at(on("cpu", "fake_quantize_"), "time", "copy", 1.2)
    for op in BACKWARD:
        yield at(on("cpu", op), "time", "add", 1.7)
        yield at(on("cpu", op), "speed", "torch learnable", 10)
    for op, layout in product(STATISTICS, LAYOUTS):
        yield at(on("cpu", op, layout=layout), "time", "aminmax", 2.5)
    yield at(on("cpu", "histogram"), "time", "aminmax", 3)
    yield at(on("cpu", "histogram"), "speed", "torch", 3)
    yield at(on("cpu", "codebook 16 words"), "time", "copy", 2)
    yield at(on("cpu", "codebook 16 words"), "speed", "expression", 10)  # bucketize + gather
    for op in ("pack int4", "unpack int4"):
        yield at(on("cpu", op, "uint8"), "bandwidth", "copy", 0.6)  # of codes


def call_rules() -> Iterator[Rule]:
    """Small tensors, CPU: every size counts."""
    small = partial(Rule, elements=(0, LARGE - 1), every_size=True)
    most = {"inference_mode": 10, "no_grad": 10, "forward": 25, "forward + backward": 80}
    for kind, microseconds in most.items():
        where = on("cpu", f"fake_quantize call, {kind}")
        yield small(where, "extra", "torch", microseconds)
        yield Rule(where, "speed", "torch", 1, elements=(LARGE, CPU), every_size=True)


def cuda_rules() -> Iterator[Rule]:
    """1 GB; of bandwidths, the copy's, and of what only reads, the sum's."""
    at = partial(Rule, elements=(LARGE, CUDA))
    for op, dtype in product(FORWARD, ("float32", "float16", "bfloat16")):
        yield at(on("cuda", op, dtype), "bandwidth", "copy", 0.92 if op == FORWARD[0] else 0.9)
        yield at(on("cuda", op, dtype), "speed", "torch", 1.5)
    for op in BACKWARD:
        if op.startswith("learnable"):
            yield at(on("cuda", op), "bandwidth", "copy", 0.85)
    for op in STATISTICS:
        yield at(on("cuda", op), "bandwidth", "sum", 0.9)
    yield at(on("cuda", "histogram"), "bandwidth", "sum", 0.7)

"""Times the kernels beside copy_, torch's own op and the formula written in PyTorch; prints the ratios of the bar.

    python benchmarks/bench_kernels.py [--device cpu|cuda] [--elements N] [--threads 2] [--json FILE]

Each number is the median of --repeats rounds; in a round every implementation of a case runs once, in turn, so that all
see the same machine. `out` buffers exist and are touched before; what torch's op allocates is part of its time.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from pytorch_quantizer import ops, reference
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.environment import provenance

CHANNELS, SIDE = 64, 56  # a ResNet's activation: [N, 64, 56, 56]
BAR = {"copy": ("at most", 2.0), "torch": ("at least", 10.0)}

Case = tuple[str, torch.Tensor, str, dict[str, Callable[[], object]]]


def expression(x, scale, zero_point, qmin, qmax):
    """The formula as one would write it."""
    return (torch.clamp(torch.round(x / scale) + zero_point, qmin, qmax) - zero_point) * scale


def fake_quantize_cases(x: torch.Tensor, layout: str) -> Iterator[Case]:
    """Per tensor, with `out`; the float32 contiguous case is the bar's."""
    scale, zero_point = torch.tensor(0.3, device=x.device), torch.tensor(3, dtype=torch.int32, device=x.device)
    grid, out = (scale, zero_point, 0, 15), torch.zeros_like(x)
    runs = {
        "ours": lambda: ops.fake_quantize(x, *grid, out=out),
        "copy": lambda: out.copy_(x),
        "torch": lambda: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 15),
        "expression": lambda: expression(x, *grid),
    }
    yield "fake_quantize", x, layout, runs
    rounded = {"ours": lambda: ops.fake_quantize(x, *grid, rounding="stochastic", out=out), "copy": runs["copy"]}
    yield "fake_quantize stochastic", x, layout, rounded
    yield "quantize", x, layout, {"ours": lambda: ops.quantize(x, *grid), "copy": runs["copy"]}
    codes = ops.quantize(x, *grid)
    restored = {"ours": lambda: ops.dequantize(codes, scale, zero_point, dtype=x.dtype), "copy": runs["copy"]}
    yield "dequantize", x, layout, restored
    grad = torch.ones_like(x)
    raw = torch.ops.pytorch_quantizer.fake_quantize_backward
    yield "fake_quantize_backward", x, layout, {"ours": lambda: raw(grad, x, *grid, -1, 0, 0, 0), "copy": runs["copy"]}


def codebook_cases(x: torch.Tensor, layout: str) -> Iterator[Case]:
    """16 and 256 levels, with `out`."""
    out = torch.zeros_like(x)
    for count in (16, 256):
        levels = torch.randn(count, device=x.device).sort().values
        highest = (levels[1:] + levels[:-1]) / 2
        runs = {
            "ours": lambda tables=(levels, highest): ops.codebook_fake_quantize(x, *tables, out=out),
            "copy": lambda: out.copy_(x),
            "torch": lambda tables=(levels, highest): tables[0][torch.bucketize(x, tables[1])],
        }
        yield f"codebook_fake_quantize, {count}", x, layout, runs


def packing_cases(device: str, elements: int) -> Iterator[Case]:
    """4 bits a code, with `out`; `copy` moves 2 bytes a code, these 1.5."""
    codes = torch.randint(0, 16, (elements,), dtype=torch.uint8, device=device)
    packed, out = ops.pack(codes, 4), torch.zeros_like(codes)
    runs = {"ours": lambda: ops.pack(codes, 4, out=packed), "copy": lambda: out.copy_(codes)}
    yield "pack", codes, "contiguous", runs
    runs = {"ours": lambda: ops.unpack(packed, 4, elements, out=out), "copy": runs["copy"]}
    yield "unpack", codes, "contiguous", runs


def per_channel_cases(x: torch.Tensor, layout: str) -> Iterator[Case]:
    """Along dimension 1."""
    scale = torch.rand(CHANNELS, device=x.device) + 0.1
    zero_point = torch.zeros(CHANNELS, dtype=torch.int32, device=x.device)
    out = torch.zeros_like(x)
    runs = {
        "ours": lambda: ops.fake_quantize(x, scale, zero_point, -8, 7, axis=1, out=out),
        "copy": lambda: out.copy_(x),
        "torch": lambda: torch.fake_quantize_per_channel_affine(x, scale, zero_point, 1, -8, 7),
    }
    yield "fake_quantize per channel", x, layout, runs


def statistics_cases(x: torch.Tensor, layout: str) -> Iterator[Case]:
    """Nine numbers; `torch` computes five of them: min, max, mean, variance, E|x − μ|."""

    def five():
        variance, mean = torch.var_mean(x, correction=0)
        return torch.aminmax(x), variance, mean, (x - mean).abs().mean()

    yield "tensor_statistics", x, layout, {"ours": lambda: ops.tensor_statistics(x), "torch": five}
    exponent = torch.tensor(-8, device=x.device)
    counted = {"ours": lambda: ops.histogram(x, exponent, bins=2048), "torch": lambda: torch.histc(x, 2048)}
    yield "histogram", x, layout, counted
    yield "tensor_statistics per channel", x, layout, {"ours": lambda: ops.tensor_statistics(x, axis=1)}


def call_case(device: str) -> Iterator[Case]:
    """What a call costs: ten elements, inference mode."""
    x, scale = torch.randn(10, device=device), torch.tensor(0.3, device=device)
    grid = (scale, torch.tensor(3, dtype=torch.int32, device=device), 0, 15)
    runs = {
        "ours": lambda: ops.fake_quantize(x, *grid),
        "torch": lambda: torch.fake_quantize_per_tensor_affine(x, *grid),
        "expression": lambda: reference.fake_quantize(x, *grid),
    }
    yield "fake_quantize, one call", x, "contiguous", runs


def cases(device: str, elements: int) -> Iterator[Case]:
    """All cases, one tensor at a time in memory."""
    yield from call_case(device)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.randn(elements, device=device).to(dtype)
        yield from fake_quantize_cases(x, "contiguous")
        if dtype == torch.float32:
            yield from statistics_cases(x.view(-1, 50), "contiguous")
            yield from codebook_cases(x, "contiguous")
    yield from packing_cases(device, elements)
    x = torch.randn(max(1, elements // (CHANNELS * SIDE * SIDE)), CHANNELS, SIDE, SIDE, device=device)
    for layout in ("contiguous", "channels_last"):
        x = x.contiguous(memory_format=getattr(torch, f"{layout}_format" if layout == "contiguous" else layout))
        yield from per_channel_cases(x, layout)
        yield from statistics_cases(x, layout)


def seconds(run: Callable[[], object], device: str, small: bool) -> float:
    """One timing, the device waited for; small tensors a thousand times over."""
    times = 1000 if small else 1
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        run()
    synchronize()
    return (time.perf_counter() - start) / times


def measure(case: Case, device: str, repeats: int) -> list[dict]:
    """Rows of one case: op, implementation, device, dtype, layout, elements, seconds."""
    op, x, layout, runs = case
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for round_ in range(repeats + 1):  # the first warms up
            for name, run in runs.items():
                took = seconds(run, device, x.numel() < 1000)
                if round_:
                    times[name].append(took)
    row = {"op": op, "device": device, "dtype": str(x.dtype)[6:], "layout": layout, "elements": x.numel()}
    return [row | {"implementation": name, "seconds": statistics.median(t)} for name, t in times.items()]


def print_rows(rows: list[dict]) -> None:
    """One line a row, with its time as a multiple of ours."""
    ours = next(row["seconds"] for row in rows if row["implementation"] == "ours")
    for row in rows:
        name = f"{row['op']:30} {row['dtype']:9} {row['layout']:14} {row['implementation']:10}"
        print(f"{name} {row['seconds'] * 1e3:10.4f} ms  {row['seconds'] / ours:7.2f} × ours", flush=True)


def print_bar(rows: list[dict], threads: int) -> None:
    """The bar: fake_quantize, float32, contiguous, `out=` given."""
    found = {
        row["implementation"]: row
        for row in rows
        if row["op"] == "fake_quantize" and row["dtype"] == "float32" and row["layout"] == "contiguous"
    }
    ours = found["ours"]
    print(f"\nbar: fake_quantize, float32, {ours['elements']:,} elements, out=, {ours['device']}, {threads} threads")
    copy, peer = ours["seconds"] / found["copy"]["seconds"], found["torch"]["seconds"] / ours["seconds"]
    print(f"ratio to copy_: {copy:.2f} (must be {BAR['copy'][0]} {BAR['copy'][1]})")
    print(
        f"faster than torch.fake_quantize_per_tensor_affine: {peer:.1f} × (must be {BAR['torch'][0]} {BAR['torch'][1]})"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--elements", type=int, default=50_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print, and write what --json asks for."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.json:
        require_writable(arguments.json)
    rows = []
    for case in cases(arguments.device, arguments.elements):
        rows += measure(case, arguments.device, arguments.repeats)
        print_rows(rows[-len(case[3]) :])
    print_bar(rows, arguments.threads)
    if arguments.json:
        text = json.dumps({**provenance(arguments.device), "rows": rows}, indent=1)
        write_atomically(arguments.json, f"{text}\n".encode())


if __name__ == "__main__":
    main()

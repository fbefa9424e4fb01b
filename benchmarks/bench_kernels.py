"""Times each kernel over sizes, dtypes and layouts beside copy_, PyTorch's own op and the formula written in PyTorch.

    python benchmarks/bench_kernels.py [--device cpu|cuda] [--ops NAME …] [--json FILE]

Each number is the median of --repeats rounds; in a round every implementation of a case runs once, in turn, so that all
see the same machine; what is quick is repeated within a timing. bytes: what an implementation must move. On the CPU,
activations have up to 50 M elements, with --large 2^28 (1 GB) too, contiguous float32 alone; on CUDA up to 2^28. The
bars come last. What the cases are: kernel_cases.py; the bars: kernel_bars.py; a picture of the JSON file:
kernel_picture.py.
"""

import argparse
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import torch
from bars import Row, bandwidth, bars, print_bars, save_rows
from kernel_bars import rules
from kernel_cases import CALLS, CASES, Case, activation
from turns import Run, medians

from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.command_line import run
from pytorch_quantizer.environment import choose_device, free_memory, provenance

LARGEST = 2**28  # 1 GB of float32
SIZES = {"cpu": (2**16, 2**19, 2**22, 50_000_000), "cuda": (2**16, 2**19, 2**22, 2**25, LARGEST)}
CALL_SIZES = (16, 2**10, 2**14, 2**16, 2**18, 2**20)
DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("contiguous", "channels_last")
PLAIN = DTYPES[0], LAYOUTS[0]
TENSORS = 10  # of a case at once, in float32: its own, and what PyTorch has on the way


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All that was asked for, one size at a time in memory."""
    for name in [name for name in CALLS if name in options.ops]:
        for elements in options.call_sizes:
            yield from CALLS[name](torch.randn(elements, device=options.device))
    for elements in options.elements:
        if not fits(elements, options.device):
            continue
        for dtype, layout in product(options.dtypes, options.layouts):
            if options.large and elements == LARGEST and (dtype, layout) != PLAIN:
                continue
            x = activation(elements, getattr(torch, dtype), layout, options.device)
            for name in [name for name in CASES if name in options.ops]:
                yield from CASES[name](x)


def fits(elements: int, device: str) -> bool:
    """Whether a size can be measured; says so where not."""
    if device == "cuda":
        torch.cuda.empty_cache()  # what earlier sizes left there is free, too
    needed, free = TENSORS * 4 * elements, free_memory(device)
    if needed > free:
        print(f"left out: {elements:,} elements need {needed >> 30} GiB, {free >> 30} GiB are free")
    return needed <= free


def measure(case: Case, repeats: int) -> list[Row]:
    """A row an implementation."""
    with getattr(torch, case.mode)():
        seconds = medians(runnable(case), case.x.device.type, repeats)
    return [
        case.description() | {"implementation": name, "bytes": case.bytes_of(name), "seconds": value}
        for name, value in seconds.items()
    ]


def runnable(case: Case) -> dict[str, Run]:
    """The case's runs without those of PyTorch's ops that don't take its dtype; says which."""
    found = dict(case.runs)
    for name in [name for name in case.runs if name.startswith("torch")]:
        try:
            found[name]()
        except (RuntimeError, NotImplementedError) as error:
            print(f"{case.op}: {name} left out: {str(error).splitlines()[0]}")
            del found[name]
    return found


def print_rows(rows: Iterable[Row]) -> None:
    """One line a row, with its bandwidth and its time as a multiple of ours."""
    ours = next(row["seconds"] for row in rows if row["implementation"] == "ours")
    for row in rows:
        name = f"{row['op']:39} {row['dtype']:9} {row['layout']:14} {row['elements']:>11,} {row['implementation']:15}"
        seconds = row["seconds"]
        print(
            f"{name} {1e3 * seconds:10.4f} ms {bandwidth(row) / 1e9:8.2f} GB/s {seconds / ours:7.2f} x ours", flush=True
        )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*CALLS, *CASES]
    parser.add_argument("--device", choices=list(SIZES), default="cpu")
    parser.add_argument("--ops", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--elements", nargs="+", type=int, help="sizes of activations")
    parser.add_argument("--call-sizes", nargs="+", type=int, default=CALL_SIZES, help="elements of small vectors")
    parser.add_argument(
        "--large", action="store_true", help="on the CPU 2^28 elements too, unless --elements says which"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.large = options.large and options.device == "cpu" and not options.elements
    options.elements = options.elements or [*SIZES[options.device], *([LARGEST] if options.large else [])]
    return options


def main() -> None:
    """Measure, print, and write what --json asks for."""
    options = parse_arguments()
    choose_device(options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.json:
        require_writable(options.json)
    rows: list[Row] = []
    for case in cases(options):
        rows += (measured := measure(case, options.repeats))
        print_rows(measured)
    if options.json:
        save_rows(options.json, rows, provenance(options.device) | {"repeats": options.repeats})
    print_bars(bars(rows, rules()), f"{options.threads} threads, medians, one run; PyTorch's ops allocate their output")


if __name__ == "__main__":
    run("bench_kernels.py", main)

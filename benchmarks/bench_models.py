"""Times whole networks: float32, float32 with batch norm folded, and simulated; prints the ratios.

python benchmarks/bench_models.py [--device cpu|cuda] [--models resnet20:256 …] [--recipe w8a4_aciq] [--json FILE]

A model is ARCH:BATCH. Each number is the median of --repeats rounds; in a round every variant runs once, in turn, so
that all see the same machine. Random weights and images: times do not depend on values. Two threads on the CPU.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.models import create_model

MODELS = ("resnet20:256", "resnet18:8")
REQUIRED = {"resnet20:256": 1.3}  # at most so many times the float32 model's time
CIFAR = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def main() -> None:
    """Measure each model and print its ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--recipe", default="w8a4_aciq")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.json:
        require_writable(options.json)
    rows = [row for name in options.models for row in measure(name, options)]
    if options.json:
        text = json.dumps({**provenance(options.device), "rows": rows}, indent=1)
        write_atomically(options.json, f"{text}\n".encode())


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The median seconds of each variant of one model, and the printed ratios."""
    arch, batch = name.split(":")
    side = 32 if arch in CIFAR else 224
    torch.manual_seed(0)
    model = create_model(arch).to(options.device)
    images = torch.randn(int(batch), 3, side, side, device=options.device)
    variants = {
        "float32": model,
        "float32 folded": pq.fold(pq.capture(model))[0],
        "simulated": pq.quantize(model, options.recipe, [images], progress=False),
    }
    seconds = medians(variants, images, options.repeats)
    for variant in ("float32 folded", "simulated"):
        ratio = seconds[variant] / seconds["float32"]
        required = f", must be <= {REQUIRED[name]}" if variant == "simulated" and name in REQUIRED else ""
        print(f"{name:<16} {variant:<16} {1e3 * seconds[variant]:8.1f} ms, {ratio:.2f} x float32{required}")
    common = {"model": arch, "batch": int(batch), "device": options.device, "recipe": options.recipe}
    return [{**common, "implementation": variant, "seconds": value} for variant, value in seconds.items()]


@torch.inference_mode()
def medians(variants: dict[str, nn.Module], images: Tensor, repeats: int) -> dict[str, float]:
    """Median seconds a forward pass, the variants taking turns; one untimed round first."""
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(repeats + 1):
        for variant, model in variants.items():
            spent = forward_seconds(model, images)
            if turn:
                times[variant].append(spent)
    return {variant: statistics.median(values) for variant, values in times.items()}


def forward_seconds(model: nn.Module, images: Tensor) -> float:
    """One forward pass, synchronised on CUDA."""
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

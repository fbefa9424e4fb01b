"""Times whole networks: float32, float32 with batch norm folded, and simulated, by our kernels and by PyTorch's own.

    python benchmarks/bench_models.py [--device cpu|cuda] [--models resnet20:256 resnet50:8:224 …] [--json FILE]

A model is ARCH:BATCH or ARCH:BATCH:SIDE (of the images: 32 for the CIFAR ResNets, else 224). Each number is the median
of --repeats rounds; in a round every variant runs once, in turn, so that all see the same machine. 'simulated by torch'
is the same graph with torch.fake_quantize_* in place of ours. Random weights and images: times do not depend on values.
Two threads on the CPU. The bars come last.
"""

import argparse
import copy
from functools import partial
from pathlib import Path

import torch
from bars import Row, Rule, bars, print_bars, save_rows
from torch import Tensor, nn
from turns import medians

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.command_line import run
from pytorch_quantizer.environment import choose_device, provenance
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.models import create_model, default_preprocessing
from pytorch_quantizer.quantization.qtypes import IntQuantizer, Quantizer

MODELS = ("resnet20:256", "resnet18:8", "resnet50:8")
RULES = [
    Rule({"model": model, "batch": batch, "side": side, "device": "cpu"}, "time", against, limit, "simulated")
    for model, batch, side, against, limit in (
        ("resnet20", 256, 32, "float32", 1.3),
        ("resnet50", 8, 224, "float32 folded", 1.15),
    )
]


class TorchFakeQuantize(nn.Module):
    """A fitted IntQuantizer's grid, run by torch.fake_quantize_*, which has no form in place."""

    def __init__(self, quantizer: IntQuantizer) -> None:
        super().__init__()
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point)
        self.qmin, self.qmax, self.axis = quantizer.qmin, quantizer.qmax, quantizer.axis

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Simulate, out of place always."""
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.qmin, self.qmax)
        scale, zero_point = self.scale, self.zero_point
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point, self.axis, self.qmin, self.qmax)


def by_torch(model: pq.QuantizedModel) -> nn.Module:
    """A copy whose activations PyTorch's own ops quantize. Raises InputError for a number type that they don't have."""
    model = copy.deepcopy(model)
    for name, quantizer in list(model.quantizers.named_children()):
        if isinstance(quantizer, IntQuantizer):
            model.quantizers.add_module(name, TorchFakeQuantize(quantizer))
        elif isinstance(quantizer, Quantizer):
            raise InputError(f"torch has no op for {quantizer.describe()} activations: choose a recipe of integers")
    model.recompile()  # torch's take no ReLU and no addition along
    return model


def variants(model: nn.Module, recipe: str, images: Tensor) -> dict[str, nn.Module]:
    """What is timed, by name."""
    simulated = pq.quantize(model, recipe, [images], progress=False)
    return {
        "float32": model,
        "float32 folded": pq.fold(pq.capture(model))[0],
        "simulated": simulated,
        "simulated by torch": by_torch(simulated),
    }


def described(name: str) -> tuple[str, int, int]:
    """ARCH:BATCH[:SIDE] as three. Raises InputError where it isn't."""
    arch, *numbers = name.split(":")
    if len(numbers) not in (1, 2) or not all(number.isdecimal() and int(number) for number in numbers):
        raise InputError(f"a model must be ARCH:BATCH or ARCH:BATCH:SIDE, got {name!r}")
    side = int(numbers[1]) if len(numbers) == 2 else default_preprocessing(arch, "imagenet").crop
    return arch, int(numbers[0]), side


def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """A row a variant of one model."""
    arch, batch, side = described(name)
    torch.manual_seed(0)
    images = torch.randn(batch, 3, side, side, device=options.device)
    models = variants(create_model(arch).to(options.device).eval(), options.recipe, images)
    with torch.inference_mode():
        runs = {variant: partial(model, images) for variant, model in models.items()}
        seconds = medians(runs, options.device, options.repeats)
    common = {"model": arch, "batch": batch, "side": side, "device": options.device, "recipe": options.recipe}
    return [{**common, "implementation": variant, "seconds": value} for variant, value in seconds.items()]


def print_rows(name: str, rows: list[Row]) -> None:
    """One line a row, with its time as a multiple of the folded float32 model's."""
    folded = next(row["seconds"] for row in rows if row["implementation"] == "float32 folded")
    for row in rows:
        ratio = row["seconds"] / folded
        print(f"{name:<18} {row['implementation']:<20} {1e3 * row['seconds']:8.1f} ms, {ratio:.2f} x float32 folded")


def main() -> None:
    """Measure each model, print its ratios and the bars, write what --json asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--recipe", default="w8a4_aciq")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    choose_device(options.device)
    torch.set_num_threads(options.threads)
    if options.json:
        require_writable(options.json)
    rows: list[Row] = []
    for name in options.models:
        rows += (measured := measure(name, options))
        print_rows(name, measured)
    if options.json:
        save_rows(options.json, rows, provenance(options.device) | {"repeats": options.repeats})
    print_bars(bars(rows, RULES), f"{options.threads} threads, medians, one run")


if __name__ == "__main__":
    run("bench_models.py", main)

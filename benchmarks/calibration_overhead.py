"""What quantizing ResNet-50 costs beside the forward passes of calibration.

python benchmarks/calibration_overhead.py [--images 32] [--repeats 3] [--json FILE]

Within each run of quantize() a clock counts the network's passes: calibration's, without what observers take in it, and
the two of two images by which capture marks a graph and checks it. The rest is all that quantize() does beside them:
tracing, folding, placement, statistics, ranges, weights and biases put on their grids. The share is of calibration's
pass.
Weights are random: nothing here depends on their values. W8A4 with analytic ranges must stay within 10 %; methods that
search stand apart; what k-means takes, bench_kmeans.py tells.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torchvision.models import resnet50

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.calibration import calibrate
from pytorch_quantizer.environment import provenance

MOST = 0.10  # of the forward pass, for analytic ranges
RECIPES = {
    "W8A4 laplace": (pq.Recipe(activations="int4", clip="laplace"), MOST),
    "W8A4 minmax": (pq.Recipe(activations="int4"), MOST),
    "W8A4 laplace:exact": (pq.Recipe(activations="int4", clip="laplace:exact"), MOST),
    "W8A4 mse, weights minmax": (pq.Recipe(activations="int4", clip="mse"), None),
    "W4A4 mse, weights mse": (pq.Recipe(weights="int4", activations="int4", clip="mse", weight_clip="mse"), None),
}


def main() -> None:
    """Time each recipe beside the forward pass, print as they come, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.json:
        require_writable(options.json)
    torch.set_num_threads(2)
    model = resnet50(weights=None).eval()
    images = torch.randn(options.images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, (recipe, limit) in RECIPES.items():
        clocks = [timed(model, recipe, images) for _ in range(options.repeats + 1)][1:]  # the first warms up
        forward, checks, beside = (
            median(getattr(clock, part) for clock in clocks) for part in ("calibration", "capture", "beside")
        )
        share = median(clock.beside / clock.calibration for clock in clocks)
        verdict = "" if limit is None else f"   must be <= {limit:.0%}: {'ok' if share <= limit else 'MISS'}"
        print(
            f"{name:<28} forward {forward:6.2f} s   capture's passes {checks:5.2f} s   beside them {beside:6.2f} s "
            f"= {share:5.1%} of the forward{verdict}",
            flush=True,
        )
        times = {"forward_s": forward, "capture_passes_s": checks, "beside_s": beside}
        rows.append({"recipe": name, **times, "share": share, "limit": limit})
    if options.json:
        text = json.dumps({**provenance(), "images": options.images, "rows": rows}, indent=1)
        write_atomically(options.json, f"{text}\n".encode())


class Clock:
    """The seconds of one run: its passes through the network by kind, observers apart, and all that is beside them."""

    def __init__(self) -> None:
        self.calibration = self.capture = self.beside = 0.0
        self.inside = False  # a pass: what it calls is part of it

    def counting(self, call: Callable[..., Any], network: Callable[[Any], bool], kind: str) -> Callable[..., Any]:
        """A method that counts as a pass of a kind where its object is a network and no other pass runs."""

        def counted(target: Any, *args: Any, **kwargs: Any) -> Any:
            if self.inside or not network(target):
                return call(target, *args, **kwargs)
            self.inside, start = True, time.perf_counter()
            try:
                return call(target, *args, **kwargs)
            finally:
                self.inside = False
                setattr(self, kind, getattr(self, kind) + time.perf_counter() - start)

        return counted

    def leaving(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A method whose time is taken out of calibration's pass, in which it is called."""

        def left(*args: Any) -> Any:
            start = time.perf_counter()
            result = call(*args)
            self.calibration -= time.perf_counter() - start
            return result

        return left


def timed(model: nn.Module, recipe: pq.Recipe, images: Tensor) -> Clock:
    """Quantize once, the clock running."""
    clock = Clock()
    recorder = calibrate._Recorder
    networks = (lambda module: module is model or isinstance(module, fx.GraphModule), lambda runner: True)
    with (
        patch.object(nn.Module, "__call__", clock.counting(nn.Module.__call__, networks[0], "capture")),
        patch.object(calibrate._Runner, "run", clock.counting(calibrate._Runner.run, networks[1], "calibration")),
        patch.object(fx.Interpreter, "run", clock.counting(fx.Interpreter.run, networks[1], "capture")),
        patch.object(recorder, "__call__", clock.leaving(recorder.__call__)),
    ):
        start = time.perf_counter()
        pq.quantize(model, recipe, images, progress=False)
        clock.beside = time.perf_counter() - start - clock.calibration - clock.capture
    return clock


if __name__ == "__main__":
    main()

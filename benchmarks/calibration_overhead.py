"""What quantizing ResNet-50 costs beside the forward passes of calibration.

python benchmarks/calibration_overhead.py [--images 32] [--repeats 3] [--json FILE]

The forward passes are those of calibration, of the folded float network over all images, and the three of two images by
which capture marks a graph and checks it; they are timed by themselves within the same run. The rest is all that
quantize() does beside them: tracing, folding, placement, statistics, ranges, weights and biases put on their grids. The
share is of calibration's forward pass.
Weights are random: nothing here depends on their values. W8A4 with analytic ranges must stay within 10 %; methods that
search stand apart; what k-means takes, bench_kmeans.py tells.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torchvision.models import resnet50

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.environment import provenance

CAPTURE_PASSES = 3  # the model's, its graph's, and the one that marks the graph's tensors
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
    folded, _ = pq.fold(pq.capture(model))
    rows = []
    for name, (recipe, limit) in RECIPES.items():
        forward, checks, whole = alternately(
            options.repeats,
            lambda: run(folded, images),
            lambda: [run(model, images[:2]) for _ in range(CAPTURE_PASSES)],
            lambda recipe=recipe: pq.quantize(model, recipe, images, progress=False),
        )
        beside = whole - forward - checks
        share = beside / forward
        verdict = "" if limit is None else f"   must be <= {limit:.0%}: {'ok' if share <= limit else 'MISS'}"
        print(
            f"{name:<28} forward {forward:6.2f} s   capture's passes {checks:5.2f} s   beside them {beside:6.2f} s "
            f"= {share:5.0%} of the forward{verdict}",
            flush=True,
        )
        times = {"forward_s": forward, "capture_passes_s": checks, "beside_s": beside}
        rows.append({"recipe": name, **times, "share": share, "limit": limit})
    if options.json:
        text = json.dumps({**provenance(), "images": options.images, "rows": rows}, indent=1)
        write_atomically(options.json, f"{text}\n".encode())


@torch.no_grad()
def run(graph: torch.nn.Module, images: torch.Tensor) -> None:
    """One forward pass."""
    graph(images)


def alternately(repeats: int, *works: Callable[[], object]) -> list[float]:
    """The median seconds of each, taken in turns after one round of warm-up, so that all see the same machine."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for index, work in enumerate(works):
            start = time.perf_counter()
            work()
            times[index].append(time.perf_counter() - start)
    return [median(taken[1:]) for taken in times]


if __name__ == "__main__":
    main()

"""What learning brings on training images that nothing in it saw: recipes are chosen by these, not by test images.

python benchmarks/tuning_unseen.py --data ../shared/data [--recipes w4a4_qdrop …] [--iterations 1000 2500] [--json FILE]

ResNet-20 on CIFAR-10. Calibration draws 1,024 training images; the 4,096 behind them in the same draw are unseen. On
both, before tuning and after it: the squared distance of the outputs from the float network's, in units of their mean
square, and how often both name the same class. Reconstruction fits its images so closely that tuning looks like a loss
on them where it is a gain on others: images that tuning held out of them could not tell it when to stop.
"""

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.data import calibration_loader
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, load_model, resolved

SEEN, UNSEEN, BATCH = 1024, 4096, 128


def main() -> None:
    """Measure each recipe at each number of iterations, print as they come, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--recipes", nargs="+", default=["w4a4_qdrop", "w3a3_qdrop"])
    parser.add_argument("--iterations", nargs="+", type=int, default=[1000, 2500])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.json:
        require_writable(options.json)
    rows = []
    for name, iterations, seed in product(options.recipes, options.iterations, options.seeds):
        recipe = pq.Recipe.load(name).replace(reconstruction_iterations=iterations, seed=seed)
        rows.append({"recipe": name, "iterations": iterations, "seed": seed, **measured(recipe, options.data)})
        print(f"{name}, {iterations} iterations, seed {seed}", flush=True)
        for images in ("seen", "unseen"):
            before, after = rows[-1][images]["reconstructed"], rows[-1][images]["tuned"]
            print(
                f"  {images:<7} distance {before['distance']:.5f}, tuned {after['distance']:.5f}   "
                f"agreement {before['agreement']:.2%}, tuned {after['agreement']:.2%}",
                flush=True,
            )
    if options.json:
        text = json.dumps({**provenance(), "seen": SEEN, "unseen": UNSEEN, "rows": rows}, indent=1)
        write_atomically(options.json, f"{text}\n".encode())


def measured(recipe: pq.Recipe, data: Path) -> dict[str, Any]:
    """By images, seen or unseen, and by model, reconstructed or tuned too: the distance and the agreement."""
    folder = data / "cifar10"
    config = InferenceConfig(dataset="cifar10", data=folder, arch="resnet20", checkpoint=folder / "resnet20.th")
    test, training, _ = load_images(resolved(config))
    model = load_model(resolved(config), test)
    loader = calibration_loader(training, SEEN + UNSEEN, batch_size=BATCH, seed=recipe.seed)
    drawn = torch.cat([batch[0] for batch in loader]).split([SEEN, UNSEEN])
    with tempfile.TemporaryDirectory() as blocks:  # the second run goes on behind the blocks of the first
        models = {
            stage: pq.quantize(model, stopped, drawn[0].split(BATCH), resume=blocks, progress=False)
            for stage, stopped in (("reconstructed", recipe.replace(tuning_epochs=0)), ("tuned", recipe))
        }
    return {
        name: {stage: compared(quantized, model, images) for stage, quantized in models.items()}
        for name, images in zip(("seen", "unseen"), drawn, strict=True)
    }


@torch.no_grad()
def compared(quantized: nn.Module, model: nn.Module, images: Tensor) -> dict[str, float]:
    """The distance and the agreement of two networks' outputs."""
    ours, wanted = (torch.cat([network(part) for part in images.split(BATCH)]) for network in (quantized, model))
    return {
        "distance": float((ours - wanted).square().mean() / wanted.square().mean()),
        "agreement": float((ours.argmax(1) == wanted.argmax(1)).double().mean()),
    }


if __name__ == "__main__":
    main()

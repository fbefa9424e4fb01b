"""SqueezeNet 1.1 with 4-bit weights on 650 ImageNet images, calibrated on images that are not among them.

python benchmarks/squeezenet_unseen.py --data ../shared/data [--recipes w4a8_statistical …] [--json FILE]

DATA holds imagenet/ (val/, squeezenet1_1.pth) and cifar10/ (train_10k.npz). Calibration images, COUNT of each kind:
crops, of 8 to 100 % of the area and mirrored at random, of the two photographs that scikit-learn ships (china.jpg,
flower.jpg), and CIFAR-10 training images enlarged to 224 x 224. Neither is like ImageNet: what the ranges of the 650
images themselves would give stands in accuracy.py's rows.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import RandomHorizontalFlip, RandomResizedCrop

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.data import calibration_loader, make_loader
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, load_model, resolved

COUNT = 128  # of each kind
SIZE = 224
# Reconstruction of 224 x 224 images takes hours of a CPU at the recipes' own settings; these are minutes.
SHORT = {"reconstruction_iterations": 200, "reconstruction_images": 128, "reconstruction_batch": 16, "tuning_epochs": 0}
RECIPES = {
    "w8a8": {},
    "w4a8_statistical": {},
    "w4a8_second_order": {"weights": "int4", "activations": "int8"},
    "w4a8_brecq": SHORT,
    "w4a4_statistical": {},
    "w4a4_second_order": {},
    "w4a4_qdrop": SHORT,
}
BASES = {"w4a8_second_order": "w4a4_second_order"}  # recipes that are another's with other widths


def main() -> None:
    """Measure each recipe, print as they come, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.json:
        require_writable(options.json)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.data / "cifar10")
        for name in options.recipes:
            rows.append(measured(name, options.data / "imagenet", Path(folder)))
            print(
                f"{name:<20} {rows[-1]['correct']} of {rows[-1]['samples']} right, float32 {rows[-1]['fp32_correct']}: "
                f"{rows[-1]['points_lost']:5.2f} points below it, {rows[-1]['seconds']:.0f} s",
                flush=True,
            )
    if options.json:
        text = json.dumps({**provenance(), "calibration_images": 2 * COUNT, "rows": rows}, indent=1)
        write_atomically(options.json, f"{text}\n".encode())


def write_images(folder: Path, cifar: Path) -> None:
    """Put the calibration images into a folder."""
    torch.manual_seed(0)
    crop, flip = RandomResizedCrop(SIZE, scale=(0.08, 1.0), antialias=True), RandomHorizontalFlip()
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for index in range(COUNT):
        flip(crop(photographs[index % len(photographs)])).save(folder / f"photograph_{index:04}.png")
    pixels = np.load(cifar / "train_10k.npz")["images"][:COUNT]
    for index, image in enumerate(pixels):
        large = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        large.save(folder / f"cifar10_{index:04}.png")


def measured(name: str, data: Path, images: Path) -> dict[str, Any]:
    """A row: what one recipe gives."""
    recipe = pq.Recipe.load(BASES.get(name, name)).replace(**RECIPES[name])
    config = resolved(
        InferenceConfig(
            dataset="imagenet",
            data=data,
            arch="squeezenet1_1",
            checkpoint=data / "squeezenet1_1.pth",
            calibration_data=images,
        )
    )
    test, calibration, _ = load_images(config)
    model = load_model(config, test)
    start = time.perf_counter()
    quantized = pq.quantize(model, recipe, calibration_loader(calibration, 2 * COUNT, batch_size=32, seed=0))
    seconds = time.perf_counter() - start
    found = pq.evaluate(quantized, make_loader(test, 50), reference=model)
    assert found.reference is not None
    return {
        "recipe": name,
        "changes": RECIPES[name],
        "samples": found.samples,
        "correct": round(found.top1 * found.samples),
        "fp32_correct": round(found.reference.top1 * found.samples),
        "points_lost": 100 * (found.reference.top1 - found.top1),
        "agreement": found.agreement,
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()

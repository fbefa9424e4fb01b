"""How near recipes come on training images that nothing in them saw: they are chosen by these, not by test images.

python benchmarks/unseen_images.py --data ../shared/data --recipes w2a4_second_order [--changes FIELD=VALUE …]
    [--arch resnet32] [--json FILE]

CIFAR-10, ResNet-20 unless another is named. Calibration draws 1,024 training images; the 4,096 behind them in the same
draw are unseen. On both the squared distance of the outputs from the float network's, in units of their mean square,
and how often both name the same class; of recipes that end with tuning before it too. Reconstruction fits
its images so closely that tuning looks like a loss on them where it is a gain on others: images that tuning held out of
them could not tell it when to stop.
"""

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.data import calibration_loader
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, load_model, resolved

SEEN, UNSEEN, BATCH = 1024, 4096, 128


def main() -> None:
    """Measure each recipe, print as they come, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--arch", default="resnet20", help="with its weights in DATA/cifar10/ARCH.th")
    parser.add_argument("--recipes", nargs="+", default=["w4a4_qdrop", "w3a3_qdrop"])
    parser.add_argument("--changes", nargs="+", default=[], metavar="FIELD=VALUE", help="of every recipe")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.json:
        require_writable(options.json)
    torch.set_num_threads(options.threads)
    changes = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in options.changes)}
    rows = []
    for name, seed in product(options.recipes, options.seeds):
        recipe = pq.Recipe.load(name).replace(seed=seed, **changes)
        found = measured(recipe, options.data / "cifar10", options.arch)
        rows.append({"arch": options.arch, "recipe": name, "changes": changes, "seed": seed, **found})
        print(f"{' '.join([options.arch, name, *options.changes])}, seed {seed}", flush=True)
        for images in ("seen", "unseen"):
            told = [
                f"{stage} distance {of['distance']:.5f} agreement {of['agreement']:.2%}"
                for stage, of in found[images].items()
            ]
            print(f"  {images:<7} {', '.join(told)}", flush=True)
    if options.json:
        text = json.dumps({**provenance(), "seen": SEEN, "unseen": UNSEEN, "rows": rows}, indent=1)
        write_atomically(options.json, f"{text}\n".encode())


def measured(recipe: pq.Recipe, folder: Path, arch: str) -> dict[str, Any]:
    """By images, seen or unseen, and by stage, before tuning and at the end: the distance and the agreement."""
    config = InferenceConfig(dataset="cifar10", data=folder, arch=arch, checkpoint=folder / f"{arch}.th")
    test, training, _ = load_images(resolved(config))
    model = load_model(resolved(config), test)
    loader = calibration_loader(training, SEEN + UNSEEN, batch_size=BATCH, seed=recipe.seed)
    drawn = torch.cat([batch[0] for batch in loader]).split([SEEN, UNSEEN])
    stages = {"before tuning": recipe.replace(tuning_epochs=0)} if recipe.tuning_epochs else {}
    with tempfile.TemporaryDirectory() as kept:  # what is tuned goes on behind the blocks that were learned before
        blocks = kept if recipe.reconstruction != "none" else None
        models = {
            stage: pq.quantize(model, stopped, drawn[0].split(BATCH), resume=blocks, progress=False)
            for stage, stopped in (stages | {"at the end": recipe}).items()
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

"""The accuracy figures that the README states, on real images, each beside what it must be.

python benchmarks/accuracy.py --data ../shared/data [--json FILE]

DATA holds cifar10/ (test.npz, train_10k.npz, resnet20.th) and imagenet/ (val/, squeezenet1_1.pth). Ranges on CIFAR-10
come from 1,024 training images; those of SqueezeNet from the evaluated images themselves, for there are no others.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.data import calibration_loader, load_dataset, make_loader
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.evaluation import Evaluation
from pytorch_quantizer.graph.ties import move_off_ties
from pytorch_quantizer.models import create_model, default_preprocessing

SEEDS = (0, 1, 2)
SAMPLES = 1024
BATCH = 128


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, its value for people, what it must be, and whether it is."""

    what: str
    measured: str
    required: str
    met: bool


class Cifar:
    """ResNet-20 on CIFAR-10, float and quantized by recipe and calibration seed."""

    def __init__(self, folder: Path) -> None:
        self.model = create_model("resnet20", checkpoint=folder / "resnet20.th")
        self.test = make_loader(load_dataset("cifar10", folder, split="test"), 250)
        self.train = load_dataset("cifar10", folder, split="train")

    def quantized(self, recipe: pq.Recipe, seed: int = 0) -> Evaluation:
        """Quantize and evaluate on the test set."""
        return pq.evaluate(self.model_of(recipe, seed), self.test)

    def model_of(self, recipe: pq.Recipe, seed: int = 0) -> pq.QuantizedModel:
        """Quantize with ranges from SAMPLES training images."""
        calibration = calibration_loader(self.train, SAMPLES, batch_size=BATCH, seed=seed)
        return pq.quantize(self.model, recipe, calibration)


def main() -> None:
    """Measure every row, print each as it comes, and write them all as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.json:
        require_writable(options.json)
    rows = []
    for row in chain(cifar_rows(options.data / "cifar10"), imagenet_rows(options.data / "imagenet")):
        print(f"{'ok  ' if row.met else 'MISS'} {row.what:<62} {row.measured:<34} must be {row.required}", flush=True)
        rows.append(vars(row))
    if options.json:
        text = json.dumps({**provenance(), "rows": rows}, indent=1, ensure_ascii=False)
        write_atomically(options.json, f"{text}\n".encode())


def cifar_rows(folder: Path) -> Iterator[Row]:
    """ResNet-20: float32, folding, W8A8, W8A4, int32 biases, the statistical recipes."""
    cifar = Cifar(folder)
    correct = round(pq.evaluate(cifar.model, cifar.test).top1 * 10_000)
    yield Row("ResNet-20, CIFAR-10, float32", f"{correct} of 10,000", "9173 ± 2", abs(correct - 9173) <= 2)
    yield folding_row(cifar)
    w8a8 = pq.Recipe.load("w8a8")
    for recipe in (w8a8, pq.Recipe.load("w8a8_aciq")):
        top1 = cifar.quantized(recipe).top1
        yield Row(f"W8A8, deployable, {recipe.clip}", f"{top1:.2%}", ">= 91.5 %", top1 >= 0.915)
    yield from w8a4_rows(cifar)
    yield bias_row(cifar)
    yield from statistical_rows(cifar)


def bias_row(cifar: Cifar) -> Row:
    """W8A8 with int32 biases against the same with float biases: weights' scales off ties in both, as in what runs."""
    recipe = pq.Recipe.load("w8a8")
    integer = cifar.model_of(recipe)
    floating = cifar.model_of(recipe.replace(bias="float32", deployable=False))
    move_off_ties(floating)
    one, other = (pq.evaluate(model, cifar.test).predictions for model in (integer, floating))
    share = float((one != other).double().mean())
    return Row("W8A8, int32 against float biases, predictions that differ", f"{share:.2%}", "<= 0.5 %", share <= 0.005)


def folding_row(cifar: Cifar) -> Row:
    """The folded network's logits against the network's."""
    folded, _ = pq.fold(pq.capture(cifar.model))
    before, after = logits(cifar.model, cifar.test), logits(folded, cifar.test)
    changed = int((before.argmax(1) != after.argmax(1)).sum())
    largest = float((before - after).abs().max())
    measured = f"{changed} predictions differ, logits by {largest:.1e}"
    return Row("after BN folding", measured, "<= 3 and <= 1e-4", changed <= 3 and largest <= 1e-4)


def w8a4_rows(cifar: Cifar) -> Iterator[Row]:
    """W8A4 under both clippings, the mean over calibration seeds."""
    tops = {clip: [cifar.quantized(pq.Recipe.load(name), seed).top1 for seed in SEEDS] for clip, name in W8A4.items()}
    for clip, values in tops.items():
        measured = f"{mean(values):.2%} ({', '.join(f'{value:.2%}' for value in values)})"
        met = clip == "minmax" or mean(values) >= 0.904
        yield Row(
            f"W8A4, deployable, {clip}, {len(SEEDS)} seeds", measured, ">= 90.4 %" if clip != "minmax" else "-", met
        )
    gain = 100 * (mean(tops["laplace"]) - mean(tops["minmax"]))
    yield Row("W8A4, laplace above minmax", f"{gain:.2f} points", ">= 2 points", gain >= 2)


W8A4 = {"laplace": "w8a4_aciq", "minmax": "w8a4"}


STATISTICAL = {  # nothing learned; deployable but for the paper's setting
    "w8a4_statistical": 0.910,
    "w4a8_statistical": 0.915,
    "w4a4_statistical": 0.907,
    "w3a3_statistical": 0.865,
    "w2a4_statistical": 0.78,
    "w8a4_paper": 0.912,
    "w4a4_paper": 0.908,
}


def statistical_rows(cifar: Cifar) -> Iterator[Row]:
    """The recipes that correct what quantization shifts, the mean over calibration seeds."""
    for name, required in STATISTICAL.items():
        recipe = pq.Recipe.load(name)
        values = [cifar.quantized(recipe, seed).top1 for seed in SEEDS]
        setting = "deployable" if recipe.deployable else "paper's setting"
        shown = f"{mean(values):.2%} ({', '.join(f'{value:.2%}' for value in values)})"
        yield Row(f"{name}, {setting}, {len(SEEDS)} seeds", shown, f">= {required:.1%}", mean(values) >= required)


def imagenet_rows(folder: Path) -> Iterator[Row]:
    """SqueezeNet 1.1 on the images that are there."""
    model = create_model("squeezenet1_1", checkpoint=folder / "squeezenet1_1.pth")
    preprocessing = default_preprocessing("squeezenet1_1", "imagenet")
    images = load_dataset("imagenet", folder, split="test", preprocessing=preprocessing)
    loader = make_loader(images, 50)
    correct = round(pq.evaluate(model, loader).top1 * len(images))
    yield Row(
        f"SqueezeNet 1.1, {len(images)} ImageNet images, float32", str(correct), "450 ± 2", abs(correct - 450) <= 2
    )
    calibration = calibration_loader(images, SAMPLES, batch_size=50, seed=0)
    for name, least in SQUEEZENET.items():
        quantized = round(pq.evaluate(pq.quantize(model, pq.Recipe.load(name), calibration), loader).top1 * len(images))
        lost = f"{quantized}, {100 * (correct - quantized) / len(images):.2f} points below float32"
        required = "-" if least is None else f">= {least}"
        yield Row(f"SqueezeNet 1.1, {name}", lost, required, least is None or quantized >= least)


SQUEEZENET = {  # images of 650 that must be right
    "w8a8": 440,
    "w8a8_aciq": 440,
    "w8a4_aciq": None,
    "w8a4_statistical": None,
    "w4a8_statistical": None,
    "w8a4_paper": None,
    "w4a8_paper": None,
}


@torch.inference_mode()
def logits(model: nn.Module, loader: Any) -> Tensor:
    """[images, classes] over a loader."""
    return torch.cat([model(images) for images, _ in loader])


if __name__ == "__main__":
    main()

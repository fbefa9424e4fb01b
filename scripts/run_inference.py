"""Quantize a trained network without retraining and measure what it costs, on real images.

Prints float32 beside quantized and writes result.json, layers.csv (a row a tensor: bits, range, clipped fraction, SQNR)
and layers.html (the same as a picture) into the output folder.

  python scripts/run_inference.py
      the embedded job: handwritten digits, the bundled ResNet-20, 8-bit weights, 4-bit activations

  python scripts/run_inference.py --dataset cifar10 --data DIR --arch resnet20 --checkpoint resnet20.th
      --weights int8 --activations int4 --clip laplace --output OUT
      DIR holds cifar-10-batches-py/, or train and test as .npz

  python scripts/run_inference.py --dataset imagenet --data DIR --arch resnet50 --weights int8 --activations int4
      DIR holds val/<wnid>/*.JPEG (or the wnid folders themselves); torchvision's weights unless --checkpoint is given

Settings come from --recipe (a shipped recipe's name or a YAML file); the flags of its single fields go before it.
The simulated model computes in floating point on the quantization grid: its latency says nothing of integer hardware.
"""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonargparse

from pytorch_quantizer.command_line import HelpFormatter, add_flags, run
from pytorch_quantizer.inference import InferenceConfig, arch_of, run_inference
from pytorch_quantizer.quantization.recipe import Recipe, list_recipes
from pytorch_quantizer.report import result_table, write_report

DEFAULT_RECIPE = "w8a4_aciq"


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, run the job, print the table, write the report."""
    flags = vars(parser().parse_args(arguments))
    config = InferenceConfig(**{field.name: flags[field.name] for field in fields(InferenceConfig)})
    recipe = recipe_from(flags)
    result = run_inference(config, recipe)
    folder = config.output or Path("results") / f"{config.dataset}_{arch_of(config)}_{recipe.name}"
    write_report(result, folder)
    if flags["summary"]:
        print(result.model.summary(), end="\n\n")
    print(result_table(result.record))
    _print_notes(result.record, folder)


def parser() -> jsonargparse.ArgumentParser:
    """The flags: what to run, then the recipe and its fields."""
    made = jsonargparse.ArgumentParser(
        prog="run_inference.py", description=__doc__, formatter_class=HelpFormatter, exit_on_error=False
    )
    made.add_argument(
        "--summary", action="store_true", help="print every tensor: its bits and range, or why it is float"
    )
    add_flags(made, InferenceConfig, "what to run")
    made.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"{', '.join(list_recipes())}, or a YAML file")
    add_flags(made, Recipe, "single fields of the recipe (default: as the recipe says)", optional=True)
    return made


def recipe_from(flags: dict[str, Any]) -> Recipe:
    """The recipe with the fields that were given as flags."""
    given = {field.name: flags[field.name] for field in fields(Recipe) if flags.get(field.name) is not None}
    recipe = Recipe.load(flags["recipe"])
    return recipe.replace(**{"name": "custom", **given}) if given else recipe


def _print_notes(record: dict[str, Any], folder: Path) -> None:
    calibration = record["calibration"]
    print(f"\nranges from {calibration['samples']} images of the {calibration['split']} split, seed {record['seed']}")
    if calibration["split"] == "test":
        print("there is no training split: ranges were chosen on images that were also evaluated")
    if record["skipped_images"]:
        print(f"{len(record['skipped_images'])} images could not be decoded and were skipped; result.json lists them")
    print(f"wrote {folder / 'result.json'}, layers.csv and layers.html")


if __name__ == "__main__":
    run("run_inference.py", main)
    sys.exit(0)

"""Quantize a trained network without retraining and measure what it costs, on real images.

Prints float32 beside quantized and writes result.json, layers.csv (a row a tensor: bits, range, clipped fraction, SQNR)
and layers.html (the same as a picture) into the output folder.

  python scripts/run_inference.py
      the embedded job: handwritten digits, the bundled ResNet-20, 8-bit weights, 4-bit activations

  python scripts/run_inference.py --dataset cifar10 --data DIR --arch resnet20 --checkpoint resnet20.th
      --weights int8 --activations int4 --clip laplace --output OUT
      DIR holds cifar-10-batches-py/, or train and test as .npz

  python scripts/run_inference.py --data DIR --arch resnet50 --weights int8 --activations int4 --clip laplace
      DIR holds val/<wnid>/*.JPEG (or the wnid folders themselves), so it is ImageNet: --dataset is needed only where
      the folder doesn't say; torchvision's weights unless --checkpoint is given

  python scripts/run_inference.py --data DIR --arch resnet20 --checkpoint resnet20.th --recipe w4a4_qdrop
      --max-memory 1GiB --resume FOLDER
      rounding and steps learned block by block; stopped, the same command goes on behind the last finished block

  python scripts/run_inference.py --recipe w8a8 --save digits.safetensors --export-onnx digits.onnx
      and the quantized model as files to take along: packed, and to run in integers

Settings come from --recipe (a shipped recipe's name or a YAML file); flags of its single fields win over it.
The simulated model computes in floating point on the quantization grid: its latency says nothing of integer hardware.
"""

import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jsonargparse

from pytorch_quantizer.command_line import HelpFormatter, add_flags, run
from pytorch_quantizer.experiments.inference import InferenceConfig, resolved, run_inference
from pytorch_quantizer.experiments.model_files import ModelFiles
from pytorch_quantizer.experiments.report import result_table, write_report
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.quantization.recipe import Recipe, list_recipes

DEFAULT_RECIPE = "w8a4_aciq"
MEANING = {
    "imagenet": "folders named by ImageNet's wnids",
    "cifar10": "CIFAR-10's files",
    "mnist": "MNIST's files",
    "folder": "no other data set's layout, so its folders are the classes",
}


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, run the job, print the table, write the report and the files that were asked for."""
    flags = vars(parser().parse_args(arguments))
    asked = InferenceConfig(**{field.name: flags[field.name] for field in fields(InferenceConfig)})
    recipe, config = recipe_from(flags), resolved(asked)
    files = ModelFiles(save=flags["save"], export_onnx=flags["export_onnx"])
    resources = Resources(max_memory=flags["max_memory"], resume=flags["resume"])
    files.check()
    resources.check(recipe)
    if asked.dataset is None and asked.data is not None:
        print(f"{asked.data} holds {MEANING[config.dataset]}: --dataset {config.dataset}")
    folder = config.output or Path("results") / f"{config.dataset}_{config.arch}_{recipe.name}"
    result = run_inference(replace(config, output=folder), recipe, resources)
    write_report(result, folder)
    if flags["summary"]:
        print(result.model.summary(), end="\n\n")
    print(result_table(result.record))
    _print_notes(result.record, folder)
    for line in files.write(result.model, result.images):
        print(line)


def parser() -> jsonargparse.ArgumentParser:
    """The flags: what to run, then the recipe and its fields."""
    made = jsonargparse.ArgumentParser(
        prog="run_inference.py",
        usage="run_inference.py [flags]",
        description=__doc__,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    made.add_argument(
        "--summary", action="store_true", help="print every tensor: its bits and range, or why it is float"
    )
    add_flags(made, InferenceConfig, "what to run")
    add_flags(made, ModelFiles, "the quantized model as files")
    add_flags(made, Resources, "what learning may take")
    made.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"{', '.join(list_recipes())}, or a YAML file")
    add_flags(made, Recipe, "single fields of the recipe (default: as the recipe says)", optional=True)
    return made


def recipe_from(flags: dict[str, Any]) -> Recipe:
    """The recipe with the fields that were given as flags; its name says which of them differ from the recipe's."""
    recipe = Recipe.load(flags["recipe"])
    given = {field.name: flags[field.name] for field in fields(Recipe) if field.name in flags}
    if not given.get("seed"):
        given.pop("seed", None)  # the calibration draw's default, which says nothing of the recipe's
    changed = {name: value for name, value in given.items() if value != getattr(recipe, name)}
    parts = [f"{name.replace('_', '-')}-{str(value).lower()}" for name, value in changed.items() if name != "seed"]
    name = Path(flags["recipe"]).stem if recipe.name == Recipe.name else recipe.name  # a file that gives itself none
    return recipe.replace(**changed, name="_".join([name, *parts]))


def _print_notes(record: dict[str, Any], folder: Path) -> None:
    calibration = record["calibration"]
    images = "an unknown number of" if calibration["samples"] is None else calibration["samples"]
    drawn = f" of the {calibration['split']} split, seed {record['seed']}"
    file = calibration["statistics_file"]
    reused = f", those of {file}: --seed and --calibration-samples choose none"
    print(f"\nquantized in {record['quantizing_seconds']:.1f} s")
    print(f"ranges from {images} images{drawn if file is None else reused}")
    if calibration["split"] == "test":
        print("there is no training split: ranges were chosen on images that were also evaluated")
    if record["skipped_images"]:
        print(f"{len(record['skipped_images'])} images could not be decoded and were skipped; result.json lists them")
    print(
        f"wrote {folder / 'result.json'}, and layers.csv and .html: each tensor on {record['layers']['samples']} images"
    )


if __name__ == "__main__":
    run("run_inference.py", main)
    sys.exit(0)

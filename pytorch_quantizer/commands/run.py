r"""Quantize a trained network without retraining and measure what it costs, on real images.

Prints float32 beside quantized and writes result.json, layers.csv (a row a tensor: bits, range, clipped fraction, SQNR)
and layers.html (the same as a picture) into the output folder.

  pq run
      the embedded job: handwritten digits, the bundled ResNet-20, 8-bit weights, 4-bit activations

  pq run --dataset cifar10 --data DIR --arch resnet20 --checkpoint resnet20.th \
      --weights int8 --activations int4 --clip laplace --output OUT
      DIR holds cifar-10-batches-py/, or train and test as .npz

  pq run --data DIR --arch resnet50 --weights int8 --activations int4 --clip laplace
      DIR holds val/<wnid>/*.JPEG (or the wnid folders themselves), so it is ImageNet: --dataset is needed only where
      the folder doesn't say; torchvision's weights unless --checkpoint is given

  pq run --data DIR --arch resnet20 --checkpoint resnet20.th --recipe w4a4_qdrop \
      --max-memory 1GiB --resume FOLDER
      rounding and steps learned block by block; stopped, the same command goes on behind the last finished block

  torchrun --nproc-per-node 4 scripts/run_inference.py --data DIR --arch resnet50
      four processes, each on a GPU of its own where there are any, share calibration's and evaluation's batches and
      come to the numbers that one has; what is learned is learned by the first

  pq run --recipe w8a8 --save digits.safetensors --export-onnx digits.onnx
      and the quantized model as files to take along: packed, and to run in integers

Settings come from --recipe (a shipped recipe's name, or a file, YAML or JSON); flags of its single fields win over it.
The simulated model computes in floating point on the quantization grid: its latency says nothing of integer hardware.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse

from pytorch_quantizer.command_line import from_flags
from pytorch_quantizer.commands.quantizing_parser import quantizing_parser
from pytorch_quantizer.commands.recipe_flags import recipe_from
from pytorch_quantizer.commands.report_flag import check_report, write_report_of
from pytorch_quantizer.data.registry import SPLITS
from pytorch_quantizer.experiments.inference import Inference, infer, result_of
from pytorch_quantizer.experiments.inference_config import InferenceConfig, resolved
from pytorch_quantizer.experiments.model_files import ModelFiles
from pytorch_quantizer.experiments.report import result_table, write_report
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.ranks import joined_ranks

MEANING = {
    "imagenet": "folders named by ImageNet's wnids",
    "cifar10": "CIFAR-10's files",
    "mnist": "MNIST's files",
    "folder": "no other data set's layout, so its folders are the classes",
}


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, run the job, print the table, write the report and the files that were asked for.

    Of several processes that torchrun started, all share the job, and the first prints and writes.
    """
    flags = vars(parser().parse_args(arguments))
    asked = from_flags(InferenceConfig, flags)
    recipe, config = recipe_from(flags), resolved(asked)
    files = from_flags(ModelFiles, flags)
    resources = from_flags(Resources, flags)
    files.check(recipe)
    check_report(flags["report"])
    resources.check(recipe)
    if asked.dataset is None and asked.data is not None:
        print(f"{asked.data} holds {MEANING[config.dataset]}: --dataset {config.dataset}")
    folder = config.output or Path("results") / f"{config.dataset}_{config.arch}_{recipe.name}"
    with joined_ranks() as ranks:
        done = infer(replace(config, output=folder), recipe, resources, ranks)
        if ranks.is_first:
            _report(done, folder, files, summary=flags["summary"])
            write_report_of(flags["report"], folder / "result.json")


def _report(done: Inference, folder: Path, files: ModelFiles, *, summary: bool) -> None:
    """Time and measure what was evaluated, print it and write it."""
    from pytorch_quantizer.reports.pages import write_tensors_page

    result = result_of(done)
    write_report(result, folder)
    write_tensors_page(folder / "layers.html", result.layers, result.record)
    if summary:
        print(result.model.summary(), end="\n\n")
    print(result_table(result.record))
    _print_notes(result.record, folder)
    written = files.write_measured(result.model, result.images)
    print(*written.lines, sep="\n", end="\n" if written.lines else "")
    if written.exported is not None:
        write_report(replace(result, record=result.record | {"exported": written.exported}), folder)


def parser() -> jsonargparse.ArgumentParser:
    """The flags: what to run, then the recipe and its fields."""
    return quantizing_parser("run", __doc__, InferenceConfig)


def _print_notes(record: dict[str, Any], folder: Path) -> None:
    calibration = record["calibration"]
    print(f"\nquantized in {record['quantizing_seconds']:.1f} s")
    print(_ranges(record))
    if calibration["split"] == "test" and calibration["samples"] != 0:
        print("there is no training split: ranges were chosen on images that were also evaluated")
    if record["skipped_images"]:
        print(f"{len(record['skipped_images'])} images could not be decoded and were skipped; result.json lists them")
    print(
        f"wrote {folder / 'result.json'}, and layers.csv and .html: each tensor on {record['layers']['samples']} images"
    )


def _ranges(record: dict[str, Any]) -> str:
    """Where the ranges of activations, and what is corrected and learned, come from."""
    calibration, recipe = record["calibration"], record["recipe"]
    online = recipe["statistics"] != "offline"
    learns = recipe["reconstruction"] != "none" or recipe["tuning_epochs"] > 0
    if calibration["samples"] == 0:
        return "ranges from each batch as it comes, none from calibration" if online else "no calibration images needed"
    images = "an unknown number of" if calibration["samples"] is None else calibration["samples"]
    if (file := calibration["statistics_file"]) is not None:
        chosen = "" if learns else ": --seed and --calibration-samples choose none"
        return f"ranges from {images} images, those of {file}{chosen}"
    split = calibration["split"]
    source = f"the {split} split" if split in SPLITS else split
    told = "ranges and what is learned" if learns else "ranges"
    told = "ranges from each batch as it comes, all else" if online else told
    return f"{told} from {images} images of {source}, seed {record['seed']}"

"""Does what runs in integers compute what the simulation said? Simulation, integer reference and ONNX Runtime compared.

Quantizes a network as `pq run` does, runs all three on the same test images, and prints top-1 and predictions
side by side, the tensors whose codes differ, and for each model the first tensor, in the order of execution, that
differs from the simulation: by how many codes, and why. Writes compare.json into the output folder.

  pq compare
      the embedded job: handwritten digits, the bundled ResNet-20, 8-bit weights, 4-bit activations

  pq compare --data DIR --arch resnet20 --checkpoint resnet20.th --recipe w8a8 --output OUT
      DIR holds cifar-10-batches-py/, or train and test as .npz

Each tensor is compared twice: alone, computed in integers from the simulation's codes of its inputs, so that it answers
for itself; and where each model runs by itself. A tie is a value so near to a half before rounding that float32's noise
decides to which side it falls. The integer reference is exact and slow: 1000 images unless --limit says otherwise.
ONNX Runtime takes part where it is installed (pip install pytorch-quantizer[onnx]). The flags are `pq run`'s.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import jsonargparse

from pytorch_quantizer.command_line import from_flags
from pytorch_quantizer.commands.quantizing_parser import quantizing_parser
from pytorch_quantizer.commands.recipe_flags import recipe_from
from pytorch_quantizer.commands.report_flag import check_report, write_report_of
from pytorch_quantizer.experiments.comparison import run_comparison
from pytorch_quantizer.experiments.comparison_record import FILE
from pytorch_quantizer.experiments.comparison_report import comparison_text, write_comparison
from pytorch_quantizer.experiments.inference_config import InferenceConfig, resolved
from pytorch_quantizer.experiments.model_files import ModelFiles
from pytorch_quantizer.experiments.resources import Resources


@dataclass(frozen=True)
class Config(InferenceConfig):
    """InferenceConfig with fewer images, for exact integers are slow, and another file."""

    limit: int | None = field(
        default=1000, metadata={"help": "compare on this many images, spread evenly over the data set; null: all"}
    )
    output: Path | None = field(
        default=None, metadata={"help": f"folder for {FILE}; default: results/compare_DATASET_ARCH_RECIPE"}
    )


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, compare, print what differs, write the file."""
    flags = vars(parser().parse_args(arguments))
    config = resolved(from_flags(Config, flags))
    recipe = recipe_from(flags)
    folder = config.output or Path("results") / f"compare_{config.dataset}_{config.arch}_{recipe.name}"
    files = from_flags(ModelFiles, flags)
    resources = from_flags(Resources, flags)
    files.check(recipe)
    check_report(flags["report"])
    resources.check(recipe)
    result = run_comparison(replace(config, output=folder), recipe, resources)
    write_comparison(result.comparison, result.record, folder)
    if flags["summary"]:
        print(result.model.summary(), end="\n\n")
    print(f"{config.arch} on {config.dataset}: recipe {recipe.name}, {result.comparison.images} images\n")
    print(comparison_text(result.comparison))
    skipped = len(result.record["skipped_images"])
    if skipped:
        print(f"{skipped} images could not be decoded and were skipped; {FILE} lists them")
    print(f"wrote {folder / FILE}", *files.write(result.model, result.images), sep="\n")
    write_report_of(flags["report"], folder / FILE)


def parser() -> jsonargparse.ArgumentParser:
    """The flags: what to run, then the recipe and its fields."""
    return quantizing_parser("compare", __doc__, Config)

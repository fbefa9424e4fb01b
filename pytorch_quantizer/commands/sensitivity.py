"""Which layer does quantization hurt? Each layer quantized alone, and all but it, against the float network.

Prints the layers, worst first, with top-1 and the SQNR of the logits, and closes with the answer in a line; writes
sensitivity.csv, sensitivity.json and sensitivity.html (the same as a picture) into the output folder.

  pq sensitivity
      the embedded job: handwritten digits, the bundled ResNet-20, 8-bit weights, 4-bit activations

  pq sensitivity --data DIR --arch resnet50 --weights int4 --what weights
      DIR holds ImageNet's val/<wnid>/*.JPEG; each layer's weights alone, the tensors between them in float

A layer is a convolution, a linear layer, or an operation that reads quantized tensors (an addition, a pooling). Ranges
are chosen once, with every layer's; a recipe's corrections of the whole network (equalization, bias correction, batch
norms measured again) are left out. The flags are `pq run`'s.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonargparse
import pandas as pd

from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.command_line import add_flags, command_parser, from_flags
from pytorch_quantizer.commands.recipe_flags import add_recipe_flags, recipe_from
from pytorch_quantizer.commands.report_flag import add_report_flag, check_report, write_report_of
from pytorch_quantizer.data import calibration_loader, make_loader
from pytorch_quantizer.environment import choose_device, provenance
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation.sensitivity import WHATS, corrections_of, sensitivity
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, load_model, resolved
from pytorch_quantizer.experiments.sensitivity_report import FILES, answer, ranking, write_sensitivity
from pytorch_quantizer.quantization.recipe import Recipe

PICTURE = "sensitivity.html"
ALL_FILES = (*FILES, PICTURE)


@dataclass(frozen=True)
class Config(InferenceConfig):
    """InferenceConfig with fewer images, for there are two networks a layer, and other files."""

    limit: int | None = field(
        default=1000,
        metadata={"help": "evaluate this many images, spread evenly over the data set and held in memory; null: all"},
    )
    statistics_file: Path | None = None  # no flag
    output: Path | None = field(
        default=None,
        metadata={"help": f"folder for {', '.join(ALL_FILES)}; default: results/sensitivity_DATASET_ARCH_RECIPE"},
    )


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, diagnose, print the ranking and the answer, write the files."""
    flags = vars(parser().parse_args(arguments))
    config = resolved(from_flags(Config, flags))
    recipe, what = recipe_from(flags), flags["what"]
    if what not in WHATS:
        raise InputError(f"--what must be one of {', '.join(WHATS)}, got {what!r}")
    suffix = "" if what == "both" else f"_{what}"
    folder = config.output or Path("results") / f"sensitivity_{config.dataset}_{config.arch}_{recipe.name}{suffix}"
    check_report(flags["report"])
    table, record = diagnose(replace(config, output=folder), recipe, what)
    _write(table, record, folder)
    print(f"{record['arch']} on {record['dataset']}: recipe {recipe.name}, {what} quantized")
    print(ranking(table))
    _print_notes(record, folder)
    write_report_of(flags["report"], folder / "sensitivity.json")
    print(answer(table))


def _write(table: pd.DataFrame, record: dict[str, Any], folder: Path) -> None:
    from pytorch_quantizer.reports.pages import write_sensitivity_page

    write_sensitivity(table, record, folder)
    write_sensitivity_page(folder / PICTURE, table, record | {"answer": answer(table)})


def parser() -> jsonargparse.ArgumentParser:
    """The flags: what to run and to quantize, then the recipe and its fields."""
    made = command_parser("sensitivity", __doc__)
    made.add_argument("--what", default="both", help="a layer's weights, the activations that it reads, or both")
    add_report_flag(made)
    add_flags(made, Config, "what to run")
    add_recipe_flags(made)
    return made


def diagnose(config: InferenceConfig, recipe: Recipe, what: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(the layers, worst first; what they were measured on, for sensitivity.json)."""
    config = resolved(config)
    device = choose_device(config.device)
    test, calibration, source = load_images(config)
    model = load_model(config, test).to(device)
    if config.output is not None:
        require_writable(config.output / FILES[0])
    drawn = calibration_loader(calibration, config.calibration_samples, batch_size=config.batch_size, seed=config.seed)
    evaluated = make_loader(test, config.batch_size, limit=config.limit)
    table = sensitivity(model, recipe, drawn, evaluated, what=what, strict=config.strict)
    samples = min(config.calibration_samples, len(calibration)) - len(calibration.skipped)
    record = {
        "dataset": config.dataset,
        "arch": config.arch,
        "what": what,
        "seed": config.seed,
        "recipe": asdict(recipe),
        "left_out": corrections_of(recipe),
        "calibration": {"split": source, "samples": samples},
        "skipped_images": list(dict.fromkeys([*test.skipped, *calibration.skipped])),
        **provenance(device),
    }
    return table, record


def _print_notes(record: dict[str, Any], folder: Path) -> None:
    calibration = record["calibration"]
    print(f"\nranges from {calibration['samples']} images of the {calibration['split']} split, seed {record['seed']}")
    if record["left_out"]:
        print(f"the recipe's {', '.join(record['left_out'])} had no part in this: they fit the network as a whole")
    if record["skipped_images"]:
        print(
            f"{len(record['skipped_images'])} images could not be decoded and were skipped; sensitivity.json lists them"
        )
    print(f"wrote {', '.join(str(folder / name) for name in ALL_FILES)}\n")

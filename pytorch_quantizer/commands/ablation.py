"""Which ingredient of ACIQ did what: the ablation of Banner et al. (2019, arXiv 1810.05723) for any network.

Prints and saves a table: baseline (min-max), + clipping, + bit allocation, + bias correction, all, at 8-bit weights and
4-bit activations (8W4A), 4W8A and 4W4A, beside float32; in the paper's setting (a range a channel of the activations,
not deployable) and in the deployable one. Writes ablation.md and ablation.json into the output folder.

  pq ablation
      the embedded job: handwritten digits, the bundled ResNet-20

  pq ablation --dataset cifar10 --data DIR --arch resnet20 --checkpoint resnet20.th

  pq ablation --data DIR --arch vgg16,vgg16_bn,inception_v3,resnet18,resnet50,resnet101
      the paper's networks with torchvision's weights (where they can't be downloaded --checkpoint FILE,FILE,…, one a
      network); DIR holds ImageNet's val/<wnid>/*.JPEG. Published figures whose source could be read stand beside the
      measured ones

Every finished cell is kept in OUTPUT/cells, in a file named after all that determines it: a run that was interrupted
goes on where it stopped, and ends with the same numbers. What the code computed before it changed is computed again.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonargparse

from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.command_line import add_flags, command_parser, from_flags
from pytorch_quantizer.commands.report_flag import add_report_flag, check_report, write_report_of
from pytorch_quantizer.environment import choose_device, provenance
from pytorch_quantizer.experiments.ablation import (
    DEFAULT_BITS,
    PUBLISHED,
    QUOTAS,
    SETTINGS,
    Bits,
    ablation_markdown,
    ablation_recipes,
    parse_bits,
    parse_settings,
)
from pytorch_quantizer.experiments.cells import CellStore, Network, settings
from pytorch_quantizer.experiments.inference_config import InferenceConfig
from pytorch_quantizer.experiments.network_list import ARCH_HELP, CHECKPOINT_HELP, configs_of

FILES = ("ablation.json", "ablation.md")
IN_TABLE = ("top1", "top5", "top1_interval", "correct", "samples", "code")


@dataclass(frozen=True)
class Config(InferenceConfig):
    """InferenceConfig for several networks, each calibrated anew for every cell."""

    arch: str | None = field(default=None, metadata={"help": ARCH_HELP})
    checkpoint: str | None = field(default=None, metadata={"help": CHECKPOINT_HELP})  # type: ignore[assignment]
    statistics_file: Path | None = None  # no flag
    output: Path | None = field(
        default=None, metadata={"help": f"folder for {', '.join(FILES)} and cells/; default: results/ablation_DATASET"}
    )


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, measure every cell that isn't there yet, print and write the table."""
    flags = vars(parser().parse_args(arguments))
    given = from_flags(Config, flags)
    chosen, columns = parse_settings(flags["settings"]), parse_bits(flags["bits"])
    quota = flags["quota"]
    configs = configs_of(given)
    folder = given.output or Path("results") / f"ablation_{configs[0].dataset}"
    for name in FILES:
        require_writable(folder / name)
    check_report(flags["report"])
    store = CellStore(folder / "cells", any_code=flags["any_code"])
    measured = []
    for config in configs:
        network = Network(config, store)
        measured.append(measure_network(network, chosen, columns, quota))
        record = record_of(network, measured, chosen, quota)
        text = ablation_markdown(record)
        content = json.dumps(record, indent=2, allow_nan=False)
        write_atomically(folder / "ablation.json", f"{content}\n".encode())
        write_atomically(folder / "ablation.md", text.encode())
    print(f"\n{text}\nwrote {', '.join(str(folder / name) for name in FILES)}")
    write_report_of(flags["report"], folder / "ablation.json")


def parser() -> jsonargparse.ArgumentParser:
    """The flags: what to run, then which part of the table."""
    made = command_parser("ablation", __doc__)
    made.add_argument("--settings", default=",".join(SETTINGS), help="paper, deployable, or both with a comma")
    made.add_argument("--bits", default=DEFAULT_BITS, help="columns: w4a8 is 4-bit weights, 8-bit activations")
    made.add_argument("--quota", default="bits", choices=list(QUOTAS), help="of bit allocation in the paper's setting")
    made.add_argument("--any-code", action="store_true", help="keep cells that another version of the code computed")
    add_report_flag(made)
    add_flags(made, Config, "what to run")
    return made


def measure_network(network: Network, chosen: tuple[str, ...], columns: tuple[Bits, ...], quota: str) -> dict[str, Any]:
    """A network's entry in the record: arch, fp32 and cells; prints each as it comes."""
    arch = network.config.arch
    fp32 = network.measure(None)
    _print_cell(f"{arch} float32", fp32)
    cells, skipped = [], list(fp32["skipped_images"])
    for setting, column, row, recipe in _cells(chosen, columns, quota):
        measured = network.measure(recipe)
        _print_cell(f"{arch} {setting} {column} {row}", measured)
        skipped += measured["skipped_images"]
        place = {"setting": setting, "column": str(column), "row": row, "deployable": recipe.deployable}
        cells.append(place | _shown(measured) | {"recipe": settings(recipe)})
    return {"arch": arch, "fp32": _shown(fp32), "cells": cells, "skipped_images": list(dict.fromkeys(skipped))}


def record_of(network: Network, measured: list[dict[str, Any]], chosen: tuple[str, ...], quota: str) -> dict[str, Any]:
    """ablation.json: what was measured, on what, and the figures that stand beside it."""
    config = network.config
    published = [
        {"arch": arch, "column": column, "row": row, "top1": figure.top1, "source": figure.source}
        for (arch, column, row), figure in PUBLISHED.items()
    ]
    return {
        "dataset": config.dataset,
        "seed": config.seed,
        "limit": config.limit,
        "calibration": {
            "split": network.split,
            "samples": min(config.calibration_samples, len(network.calibration)),
        },
        "settings": list(chosen),
        "quota": quota,
        "networks": measured,
        "published": published,
        **provenance(choose_device(config.device)),
    }


def _cells(chosen: tuple[str, ...], columns: tuple[Bits, ...], quota: str) -> Iterator[tuple[str, Bits, str, Any]]:
    for setting in chosen:
        for column in columns:
            for row, recipe in ablation_recipes(setting, column, quota).items():
                yield setting, column, row, recipe


def _shown(measured: dict[str, Any]) -> dict[str, Any]:
    """A cell without what differs from run to run."""
    return {name: measured[name] for name in IN_TABLE}


def _print_cell(name: str, measured: dict[str, Any]) -> None:
    how = "kept" if measured["kept"] else f"{measured['seconds']:.0f} s"
    print(f"{name:<60} {100 * measured['top1']:6.2f} %  ({how})", flush=True)

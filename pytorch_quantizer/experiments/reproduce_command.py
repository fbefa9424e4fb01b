"""The command that makes one of the tables: its flags, its weights, rows and times in turn, its files.
The tables are reproduce.py's, measuring is reproduce_measure.py's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.command_line import add_flags, command_parser, from_flags
from pytorch_quantizer.data import load_dataset
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.cells import CellStore, Network, weights_digest
from pytorch_quantizer.experiments.inference_config import InferenceConfig, resolved
from pytorch_quantizer.experiments.reproduce import ONNX_RUNTIME, Table
from pytorch_quantizer.experiments.reproduce_measure import RUNTIMES, TableRun, versions_of
from pytorch_quantizer.experiments.reproduce_text import as_csv, as_markdown, heading, records, row_line
from pytorch_quantizer.experiments.reproduce_weights import published_weights, trained_weights


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ReproduceConfig:
    """The flags of a table's script."""

    data: Path | None = _option(None, "the data set's folder")
    checkpoint: Path | None = _option(None, "the float network's weights; default: those in --data, or trained")
    output: Path | None = _option(None, "folder of the table's files, models/ and cells/; default: results/reproduce_…")
    limit: int | None = _option(None, "evaluate and time this many test images, spread evenly, for a quick look")
    calibration_samples: int = _option(1024, "training images that ranges are chosen from")
    seed: int = _option(0, "of the calibration draw")
    threads: int = _option(1, "of the CPU, that times are measured on")
    accuracy_only: bool = _option(False, "leave out the times, which want a machine that does nothing else")
    time_again: bool = _option(False, "measure the times anew, whatever was kept")
    any_code: bool = _option(False, "keep what another version of the code measured")

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InputError(f"--threads must be at least 1, got {self.threads}")


def reproduce(
    table: Table,
    arguments: Sequence[str] | None = None,
    *,
    description: str | None = None,
    training: Path | None = None,
) -> None:
    """Measure what isn't kept yet, print the table and write it: NAME.csv, .md and .json, each whole or not at all.

    training: the config file by which scripts/train.py trains the network, where its weights aren't there.
    Raises InputError for images, weights or an output folder that can't be used, and where ONNX's packages are missing.
    """
    config = parse(table, arguments, description)
    folder = config.output or Path("results") / f"reproduce_{table.name}"
    for suffix in ("csv", "md", "json"):
        require_writable(folder / f"reproduce_{table.name}.{suffix}")
    if any(row.runtime == ONNX_RUNTIME for row in table.rows):
        versions_of(RUNTIMES)  # before a network is trained, not after it
    run = open_run(table, config, folder, training)
    rates = {}
    for row in table.rows:
        rates[row.name] = run.rates(row)
        print(row_line(row, rates[row.name]), flush=True)
    times = {} if config.accuracy_only else measure_times(run, again=config.time_again)
    text = write_table(run, rates, times, folder)
    print(f"\n{text}\nwrote {folder / f'reproduce_{table.name}'}.csv, .md and .json")


def parse(table: Table, arguments: Sequence[str] | None, description: str | None = None) -> ReproduceConfig:
    """Read the flags. Raises InputError for a mistake in them."""
    parser = command_parser(table.name, description, "--data DIR [flags]", program=f"{table.name}.py")
    add_flags(parser, ReproduceConfig, "what to run")
    return from_flags(ReproduceConfig, vars(parser.parse_args(arguments)))


def open_run(table: Table, config: ReproduceConfig, folder: Path, training: Path | None = None) -> TableRun:
    """The float network, its images and what is kept of the table; trains where there are no weights."""
    load_dataset(table.dataset, config.data)  # its error says what the folder must hold
    inference = InferenceConfig(
        dataset=table.dataset,
        data=config.data,
        arch=table.arch,
        checkpoint=config.checkpoint or find_weights(table, config.data, training),
        image_size=table.image_size,
        calibration_samples=config.calibration_samples,
        limit=config.limit,
        seed=config.seed,
        device="cpu",  # where integer kernels run
    )
    store = CellStore(folder / "cells", any_code=config.any_code)
    return TableRun(table, Network(resolved(inference), store), store, folder / "models", config.threads)


def find_weights(table: Table, data: Path | None, training: Path | None) -> Path | None:
    """Published weights beside the images, or what training writes; None: the network has bundled ones."""
    if table.weights is not None:
        return published_weights(data or Path(), table.weights)
    return None if training is None else trained_weights(training, data)


def measure_times(run: TableRun, *, again: bool = False) -> dict[str, dict[str, Any]]:
    """By timing's name, what TableRun.times gives; prints each as it comes."""
    found = {}
    for timing in run.table.timings:
        found[timing.name] = run.times(timing, again=again)
        how = "kept" if found[timing.name]["kept"] else f"{found[timing.name]['seconds']:.0f} s"
        print(f"times, {heading(timing)}  ({how})", flush=True)
    return found


def write_table(run: TableRun, rates: Mapping[str, Any], times: Mapping[str, Any], folder: Path) -> str:
    """Write the three files; gives the Markdown."""
    config, table = run.network.config, run.table
    about = {
        "calibration_samples": min(config.calibration_samples, len(run.network.calibration)),
        "split": run.network.split,
        "threads": run.threads,
    }
    rows = records(table, rates, times)
    text = as_markdown(table, rates, times, about)
    content = {
        "table": table.name,
        "title": table.title,
        **about,
        "seed": config.seed,
        "limit": config.limit,
        "weights": weights_digest(run.network.model),
        "rows": rows,
        **provenance(),
    }
    stem = f"reproduce_{table.name}"
    record = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    for suffix, data in (("csv", as_csv(rows)), ("md", text), ("json", f"{record}\n")):
        write_atomically(folder / f"{stem}.{suffix}", data.encode())
    return text

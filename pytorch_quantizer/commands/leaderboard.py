"""Every method at every width: accuracy, interval over seeds and time, as a table and a picture.

  pq leaderboard --settings W4A4 --methods "minmax,mse,second order" --limit 200
      a look at it: the embedded job, handwritten digits and the bundled ResNet-20

  pq leaderboard --dataset cifar10 --data DIR --arch resnet20,resnet32
      DIR holds CIFAR-10, and the weights as resnet20.th and resnet32.th (or --checkpoint, as many as networks)

  pq leaderboard --data DIR --arch resnet18,resnet50 --device cuda
      ImageNet with torchvision's weights

  pq leaderboard --methods minmax --join other/leaderboard.csv,third/leaderboard.csv
      one table of what several runs measured, as on several machines

Writes leaderboard.csv (a row a cell), leaderboard.md and leaderboard.html (means over seeds) into the output folder
after every cell: the rows of this run, and with --join those of other tables beside them; --kept-only gives the table
of all kept cells, of those methods, settings and seeds that are asked for. Every cell is a line, numbered among all,
and on a terminal a bar shows how far it is. Every finished cell is kept in OUTPUT/cells, in a file named after all that
determines it: a run that was interrupted goes on where it stopped, where a cell is learned block by block behind the
last finished block. A cell that fails is a row with its error; the others go on, and the exit code is 1. First and last
layer, and what only additions read, have 8 bits, or what the others have where that is wider; --residual wide gives
additions that share a tensor with a layer such a copy of it.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jsonargparse
import pandas as pd

from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.command_line import add_flags, command_parser, from_flags
from pytorch_quantizer.commands.report_flag import add_report_flag, check_report, write_report_of
from pytorch_quantizer.environment import choose_device, machine_line
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.cells import CellStore, Network
from pytorch_quantizer.experiments.inference_config import InferenceConfig, ResolvedConfig
from pytorch_quantizer.experiments.leaderboard import (
    AFFINE_UP_TO,
    DEFAULT_SETTINGS,
    METHODS,
    RESIDUALS,
    TRAINED,
    Setting,
    parse_methods,
    parse_residuals,
    parse_seeds,
    parse_settings,
    policy,
    recipe_of,
)
from pytorch_quantizer.experiments.leaderboard_table import (
    COLUMNS,
    joined,
    markdown,
    read_rows,
    require_same_networks,
)
from pytorch_quantizer.experiments.network_list import ARCH_HELP, CHECKPOINT_HELP, configs_of, parse_names
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.experiments.trained_cell import measure_trained, trained_key
from pytorch_quantizer.user_path import user_path

THIS_RUN = "this run"
FILES = ("leaderboard.csv", "leaderboard.md", "leaderboard.html")


@dataclass(frozen=True)
class Config(InferenceConfig):
    """InferenceConfig for several networks and seeds, each calibrated anew for every cell."""

    arch: str | None = field(default=None, metadata={"help": ARCH_HELP})
    checkpoint: str | None = field(default=None, metadata={"help": CHECKPOINT_HELP})  # type: ignore[assignment]
    seed: int = 0  # no flag: --seeds
    statistics_file: Path | None = None  # no flag
    output: Path | None = field(
        default=None,
        metadata={"help": f"folder for {', '.join(FILES)} and cells/; default: results/leaderboard_DATASET"},
    )


@dataclass(frozen=True)
class Memory(Resources):
    """Resources of every cell; each has its own folder for finished blocks."""

    resume: str | Path | None = None  # no flag


class Cell(NamedTuple):
    """A place of the table."""

    method: str
    setting: Setting
    residual: str
    seed: int


@dataclass
class Tables:
    """The three files: the cells of this run, and beside them those of ``others``, tables of other runs by file."""

    folder: Path
    note: str
    others: Mapping[str, pd.DataFrame]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def expect(self, config: ResolvedConfig, float32: Mapping[str, Any]) -> None:
        """Raise InputError, before hours of work, where another table has this network otherwise. float32: its cell."""
        network = {"dataset": config.dataset, "arch": config.arch, "fp32_top1": float32["top1"], "error": ""}
        require_same_networks({THIS_RUN: pd.DataFrame([network | {"samples": float32["samples"]}]), **self.others})

    def add(self, row: dict[str, Any]) -> None:
        """Write them with one cell more."""
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Write the three, each whole or not at all. Raises InputError as ``joined`` does."""
        from pytorch_quantizer.reports.pages import write_methods_page

        table = pd.DataFrame(self.rows, columns=list(COLUMNS))
        table = table.astype({"top1": float, "seconds": float, "samples": "Int64"})
        table = joined({THIS_RUN: table, **self.others}) if self.others else table
        for name, content in zip(FILES, (table.to_csv(index=False), markdown(table, self.note)), strict=False):
            write_atomically(self.folder / name, content.encode())
        write_methods_page(self.folder / FILES[-1], table)


def main(arguments: list[str] | None = None) -> int:
    """Read the flags, measure every cell that isn't there yet, write the tables; the exit code."""
    flags = vars(parser().parse_args(arguments))
    given = from_flags(Config, flags)
    methods, settings = parse_methods(flags["methods"]), parse_settings(flags["settings"])
    seeds, residuals = parse_seeds(flags["seeds"]), parse_residuals(flags["residual"])
    if flags["epochs"] < 1:
        raise InputError(f"--epochs must be at least 1, got {flags['epochs']}")
    max_memory = from_flags(Memory, flags).memory_bytes
    configs = configs_of(given)
    folder = given.output or Path("results") / f"leaderboard_{configs[0].dataset}"
    for name in FILES:
        require_writable(folder / name)
    check_report(flags["report"])
    others = {} if flags["join"] is None else read_others(flags["join"])
    tables = Tables(folder, note_of(configs[0], flags["epochs"], len(others)), others)
    store = CellStore(folder / "cells", any_code=flags["any_code"])
    places = [*product(residuals, settings, methods)]
    total = len(configs) * len(seeds) * len(places)
    numbers = (f"{number}/{total}" for number in range(1, total + 1))
    shown = sys.stderr.isatty()
    for config in configs:
        seeded = (replace(config, seed=seed) for seed in seeds)
        networks = (Network(each, store, max_memory=max_memory, progress=shown) for each in seeded)
        for row in measured(networks, places, flags["epochs"], numbers, tables.expect, kept_only=flags["kept_only"]):
            tables.add(row)
    if not tables.rows:
        if not others:
            raise InputError(f"--kept-only: {store.folder} holds none of these cells; leave it out to compute them")
        tables.write()
    failed = sum(bool(row["error"]) for row in tables.rows)
    print((folder / "leaderboard.md").read_text(encoding="utf-8"))
    told = f"; {failed} cell{'s' * (failed > 1)} failed" if failed else ""
    print(f"wrote {', '.join(str(folder / name) for name in FILES)}{told}")
    write_report_of(flags["report"], folder / FILES[0])
    return int(failed > 0)


def parser() -> jsonargparse.ArgumentParser:
    """The flags: which part of the table, then what to run."""
    made = command_parser("leaderboard", __doc__)
    made.add_argument("--methods", default=None, help=f"some of: {', '.join(METHODS)}; default: all")
    made.add_argument("--settings", default=DEFAULT_SETTINGS, help="W4A8 is 4-bit weights, 8-bit activations")
    made.add_argument("--seeds", default="0,1,2", help="of the calibration draw and of what is drawn in learning")
    made.add_argument("--residual", default="narrow", help=f"{', '.join(RESIDUALS)}, or both with a comma")
    made.add_argument("--epochs", type=int, default=20, help=f"of {', '.join(TRAINED)}, on the training split")
    made.add_argument("--any-code", action="store_true", help="keep cells that another version of the code computed")
    made.add_argument(
        "--kept-only", action="store_true", help="compute nothing: the table of those cells that are there"
    )
    made.add_argument(
        "--join",
        default=None,
        help="tables of other runs, their leaderboard.csv with commas, whose cells stand beside; where several hold a "
        "cell this run's is taken, else that of the file named first",
    )
    add_report_flag(made)
    add_flags(made, Config, "what to run")
    add_flags(made, Memory, "what learning may take")
    return made


def measured(
    networks: Iterable[Network],
    places: Sequence[tuple[str, Setting, str]],
    epochs: int,
    numbers: Iterator[str],
    expect: Callable[[ResolvedConfig, Mapping[str, Any]], None],
    *,
    kept_only: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rows as they come; prints each. networks: one under each seed. numbers: how a line names its place.

    expect: is shown the float network's cell before the others are measured. kept_only: those that need no computing.
    """
    fp32 = None
    for network in networks:
        config = network.config
        if fp32 is None:
            fp32 = network.kept(None) if kept_only else network.measure(None)
            if fp32 is None:
                return
            expect(config, fp32)
            print(f"{config.arch} float32 {fp32['top1']:.2%}", flush=True)
        for residual, setting, method in places:
            cell, number = Cell(method, setting, residual, config.seed), next(numbers)
            if not kept_only or is_kept(network, cell, epochs):
                yield measure_cell(network, cell, fp32, epochs, number)


def is_kept(network: Network, cell: Cell, epochs: int) -> bool:
    """Whether a cell was computed before."""
    try:
        recipe = recipe_of(*cell)
        trained = cell.method in TRAINED
        key = trained_key(network, recipe, epochs, trained_in(network)) if trained else network.key_of(recipe)
    except InputError:  # of a method that can't have these widths
        return False
    return network.store.read(key) is not None


def trained_in(network: Network) -> Path:
    """Where what training keeps lies."""
    return network.store.folder / "trained"


def measure_cell(network: Network, cell: Cell, fp32: dict[str, Any], epochs: int, number: str) -> dict[str, Any]:
    """A row of the table; where the cell fails, with the error in place of a figure. number: as it is told, "3/7"."""
    config = network.config
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"dataset": config.dataset, "arch": config.arch, "error": ""}
    row |= {"method": cell.method, "residual": cell.residual, "seed": cell.seed, "fp32_top1": fp32["top1"]}
    row |= {"weights": f"int{cell.setting.weights}", "activations": f"int{cell.setting.activations}"}
    try:
        recipe = recipe_of(*cell)
        row |= policy(recipe)
        trained = cell.method in TRAINED
        found = measure_trained(network, recipe, epochs, trained_in(network)) if trained else network.measure(recipe)
        row |= {name: found[name] for name in ("top1", "samples")} | {"seconds": found["quantizing_seconds"]}
        told = f"{found['top1']:7.2%}  ({'kept' if found['kept'] else str(found['seconds']) + ' s'})"
    except Exception as error:  # whatever it is: a table of hours goes on, and the row says it
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        told = row["error"]
    named = f"{config.arch} {cell.setting} {cell.residual} seed {cell.seed} {cell.method:<24}"
    print(f"[{number}] {named} {told}", flush=True)
    return row


def read_others(text: str) -> dict[str, pd.DataFrame]:
    """The tables that --join names. Raises InputError for one that isn't there, is something else or fits no other."""
    tables = {path: read_rows(user_path(path)) for path in parse_names("--join", text)}
    joined(tables)  # before hours of work, which it must fit in turn
    return tables


def note_of(config: ResolvedConfig, epochs: int, others: int) -> str:
    """What the table's figures are."""
    tables = f"{others} other table{'s' if others > 1 else ''}"
    beside = f" Cells of {tables} are as those runs found them, by their own images, epochs and machines."
    return (
        "Top-1 in %, the mean over seeds ± half of its 95 % interval (Student's t), and in brackets the mean seconds "
        "that quantizing took. First and last layer, and what only additions read: 8 bits, or as the others where they "
        f"are wider. Up to W{AFFINE_UP_TO} all weights have zero points, first and last layer's too, but for qat's. "
        f"Ranges and all that is learned come from {config.calibration_samples} images, none of them evaluated where "
        f"the data set has a training split, on which {', '.join(TRAINED)} trains for {epochs} epochs. "
        f"Machine: {machine_line(choose_device(config.device))}." + (beside if others else "")
    )

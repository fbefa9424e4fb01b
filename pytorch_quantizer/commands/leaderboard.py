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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

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
    parse_methods,
    parse_residuals,
    parse_seeds,
    parse_settings,
)
from pytorch_quantizer.experiments.leaderboard_cells import Planned
from pytorch_quantizer.experiments.leaderboard_table import (
    beside,
    joined,
    markdown,
    read_rows,
    require_fitting,
    table_of,
    without,
)
from pytorch_quantizer.experiments.network_list import ARCH_HELP, CHECKPOINT_HELP, configs_of, parse_names
from pytorch_quantizer.experiments.resources import Resources
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


@dataclass
class Tables:
    """The three files: the cells of this run, and beside them those of ``others``, tables of other runs by file."""

    folder: Path
    note: str
    others: Mapping[str, pd.DataFrame]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def expect(self, planned: Sequence[Mapping[str, Any]]) -> None:
        """Raise InputError, before hours of work, where this run's rows won't fit the others that then stand beside.

        planned: the rows as far as they are known before.
        """
        if self.others:
            cells = table_of(planned)
            require_fitting({THIS_RUN: cells, **{file: without(table, cells) for file, table in self.others.items()}})

    def take(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write them with all these cells at once, where there are any, here or in the others."""
        self.expect(rows)
        self.rows += rows
        if rows or self.others:
            self.write()

    def add(self, row: dict[str, Any]) -> None:
        """Write them with one cell more."""
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Write the three, each whole or not at all."""
        from pytorch_quantizer.reports.pages import write_methods_page

        table = table_of(self.rows)
        if self.others:
            table = joined({THIS_RUN: table, **{file: beside(other, table) for file, other in self.others.items()}})
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
    cells = Planned(
        [replace(config, seed=seed) for config in configs for seed in seeds],
        [*product(residuals, settings, methods)],
        flags["epochs"],
        lru_cache(maxsize=1)(partial(Network, store=store, max_memory=max_memory, progress=sys.stderr.isatty())),
    )
    if flags["kept_only"]:
        tables.take(list(cells.kept()))
        if not tables.rows and not others:
            raise InputError(f"--kept-only: {store.folder} holds none of these cells; leave it out to compute them")
    else:
        floats = cells.floats()
        tables.expect(list(cells.rows(floats)))
        for row in cells.measured(floats):
            tables.add(row)
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
        "cell this run's is taken, failed or not, else that of the first file in which it didn't fail",
    )
    add_report_flag(made)
    add_flags(made, Config, "what to run")
    add_flags(made, Memory, "what learning may take")
    return made


def read_others(text: str) -> dict[str, pd.DataFrame]:
    """The tables that --join names. Raises InputError for one that isn't there, is something else or fits no other."""
    tables = {path: read_rows(user_path(path)) for path in parse_names("--join", text)}
    joined(tables)  # before hours of work, which it must fit in turn
    return tables


def note_of(config: ResolvedConfig, epochs: int, others: int) -> str:
    """What the table's figures are."""
    tables = f"{others} other table{'s' if others > 1 else ''}"
    own = f" Cells of {tables} are as those runs found them, by their own grids, images, epochs and machines."
    return (
        "Top-1 in %, the mean over seeds ± half of its 95 % interval (Student's t), and in brackets the mean seconds "
        "that quantizing took. First and last layer, and what only additions read: 8 bits, or as the others where they "
        f"are wider. Up to W{AFFINE_UP_TO} all weights have zero points, first and last layer's too, but for qat's. "
        f"Ranges and all that is learned come from {config.calibration_samples} images, none of them evaluated where "
        f"the data set has a training split, on which {', '.join(TRAINED)} trains for {epochs} epochs. "
        f"Machine: {machine_line(choose_device(config.device))}." + (own if others else "")
    )

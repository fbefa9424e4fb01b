"""The leaderboard's cells, measured: a row of each method, setting and seed of each network.
Which methods there are is leaderboard.py's, the tables of rows leaderboard_table.py's, a cell's figures cells.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.cells import Network
from pytorch_quantizer.experiments.inference_config import ResolvedConfig
from pytorch_quantizer.experiments.leaderboard import TRAINED, Setting, policy, recipe_of
from pytorch_quantizer.experiments.leaderboard_table import COLUMNS
from pytorch_quantizer.experiments.trained_cell import measure_trained, trained_key

DIGITS = 16  # of the float weights' SHA-256, in hexadecimal


class Cell(NamedTuple):
    """A place of the table."""

    method: str
    setting: Setting
    residual: str
    seed: int


@dataclass(frozen=True)
class Planned:
    """The cells that are asked for. configs: one a network and seed. network: makes a config's."""

    configs: Sequence[ResolvedConfig]
    places: Sequence[tuple[str, Setting, str]]
    epochs: int
    network: Callable[[ResolvedConfig], Network]

    def floats(self) -> dict[str, dict[str, Any]]:
        """What the rows of each network have in common, by its name; the float networks are measured, and told."""
        found: dict[str, dict[str, Any]] = {}
        for config in self.configs:
            if config.arch not in found:
                network = self.network(config)
                found[config.arch] = told_float(network, network.measure(None))
        return found

    def rows(self, floats: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Every cell's row as far as it is known before it is measured."""
        for config in self.configs:
            for cell in self._cells(config):
                yield row_of(floats[config.arch], cell, self.epochs)

    def measured(self, floats: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows as they come; prints each."""
        for network, numbered in self._networks():
            for number, cell in numbered:
                yield measure_cell(network, cell, row_of(floats[network.config.arch], cell, self.epochs), number)

    def kept(self) -> Iterator[dict[str, Any]]:
        """The rows of those cells that need no computing; prints each, and which network wasn't measured in float."""
        floats: dict[str, dict[str, Any]] = {}
        for network, numbered in self._networks():
            arch = network.config.arch
            if arch not in floats:
                floats[arch] = kept_float(network)
            for number, cell in numbered if floats[arch] else ():
                if is_kept(network, cell, self.epochs):
                    yield measure_cell(network, cell, row_of(floats[arch], cell, self.epochs), number)

    def _networks(self) -> Iterator[tuple[Network, list[tuple[str, Cell]]]]:
        """Each network and seed, and its cells, each with its number among all: "3/7"."""
        total = len(self.configs) * len(self.places)
        numbers = (f"{number}/{total}" for number in range(1, total + 1))
        for config in self.configs:
            cells = self._cells(config)
            yield self.network(config), [*zip(islice(numbers, len(cells)), cells, strict=True)]

    def _cells(self, config: ResolvedConfig) -> list[Cell]:
        return [Cell(method, setting, residual, config.seed) for residual, setting, method in self.places]


def told_float(network: Network, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the rows of a network have in common; prints its float accuracy. found: the float network's cell."""
    config = network.config
    print(f"{config.arch} float32 {found['top1']:.2%}", flush=True)
    images = min(config.calibration_samples, len(network.calibration))
    named = {"dataset": config.dataset, "arch": config.arch, "calibration_images": images}
    weights = network.key_of(None)["weights"][:DIGITS]
    return named | {"fp32_top1": found["top1"], "samples": found["samples"], "float_weights": weights}


def kept_float(network: Network) -> dict[str, Any]:
    """The same where the float network was measured before; else empty, which is told."""
    found = network.kept(None)
    if found is None:
        arch = network.config.arch
        print(f"{arch} float32 isn't kept, and so no cell of it is taken: leave --kept-only out to measure it")
    return {} if found is None else told_float(network, found)


def row_of(shared: Mapping[str, Any], cell: Cell, epochs: int) -> dict[str, Any]:
    """A row before its cell is measured. shared: what the rows of its network have in common."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | dict(shared) | {"error": ""}
    row |= {"method": cell.method, "residual": cell.residual, "seed": cell.seed}
    row |= {"weights": f"int{cell.setting.weights}", "activations": f"int{cell.setting.activations}"}
    row |= {"epochs": epochs, "calibration_images": None} if cell.method in TRAINED else {}
    try:
        row |= policy(recipe_of(*cell))
    except InputError as error:  # of a method that can't have these widths
        row["error"] = told_error(error)
    return row


def told_error(error: Exception) -> str:
    """An error as a row has it: its kind and what it says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


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


def measure_cell(network: Network, cell: Cell, row: dict[str, Any], number: str) -> dict[str, Any]:
    """The row measured; where the cell fails, with the error in place of a figure. number: as it is told, "3/7"."""
    try:
        recipe = recipe_of(*cell)
        trained = cell.method in TRAINED
        measure = partial(measure_trained, epochs=row["epochs"], folder=trained_in(network))
        found = measure(network, recipe) if trained else network.measure(recipe)
        row |= {name: found[name] for name in ("top1", "samples")} | {"seconds": found["quantizing_seconds"]}
        told = f"{found['top1']:7.2%}  ({'kept' if found['kept'] else str(found['seconds']) + ' s'})"
    except Exception as error:  # whatever it is: a table of hours goes on, and the row says it
        told = row["error"] = told_error(error)
    named = f"{network.config.arch} {cell.setting} {cell.residual} seed {cell.seed} {cell.method:<24}"
    print(f"[{number}] {named} {told}", flush=True)
    return row

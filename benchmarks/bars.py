"""Bars: what a measured ratio must be. A rule compares the rows of two implementations; nothing is timed here.

A rule whose rows weren't measured gives no bar: what is absent has not passed.
"""

import json
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_quantizer.atomic import write_atomically

Row = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """How two rows compare, in words; at_most or at least its limit."""

    words: str
    value: Callable[[Row, Row], float]
    at_most: bool


MEASURES = {
    "time": Measure("x the time of", lambda ours, other: ours["seconds"] / other["seconds"], True),
    "speed": Measure("x as fast as", lambda ours, other: other["seconds"] / ours["seconds"], False),
    "bandwidth": Measure("of the bandwidth of", lambda ours, other: bandwidth(ours) / bandwidth(other), False),
    "extra": Measure("µs a call more than", lambda ours, other: 1e6 * (ours["seconds"] - other["seconds"]), True),
}


@dataclass(frozen=True)
class Rule:
    """What the rows that `where` describes must be: `measure` of `implementation` against another, within `limit`.

    Of several sizes, `elements` from the first number to the second, both included, the largest counts; with
    `every_size` the worst.
    """

    where: dict[str, Any]
    measure: str
    against: str
    limit: float
    implementation: str = "ours"
    elements: tuple[float, float] = (0, math.inf)
    every_size: bool = False


@dataclass(frozen=True)
class Bar:
    """A rule, what was measured, and whether it is met. at: elements of the rows, None where they have none."""

    name: str
    measured: float
    rule: Rule = field(repr=False)
    at: int | None

    @property
    def met(self) -> bool:
        """Never where the measured value is NaN."""
        fits = operator.le if MEASURES[self.rule.measure].at_most else operator.ge
        return fits(self.measured, self.rule.limit)

    def __str__(self) -> str:
        measure = MEASURES[self.rule.measure]
        size = "" if self.at is None else f", {self.at:,} elements"
        required = f"{'at most' if measure.at_most else 'at least'} {self.rule.limit:g}"
        ratio = f"{self.measured:.2f} {measure.words} {self.rule.against}"
        return f"{'ok  ' if self.met else 'MISS'} {self.name + size:<84} {ratio:<42} must be {required}"


def bandwidth(row: Row) -> float:
    """Bytes a second."""
    return row["bytes"] / row["seconds"]


def save_rows(path: Path, rows: Iterable[Row], provenance: Row) -> None:
    """A JSON list with a line a row; each ends with what was measured where, and when."""
    lines = ",\n".join(json.dumps(row | provenance) for row in rows)
    write_atomically(path, f"[\n{lines}\n]\n".encode())


def bars(rows: Iterable[Row], rules: Iterable[Rule]) -> list[Bar]:
    """A bar for each rule whose rows are there."""
    rows = list(rows)
    return [bar for rule in rules if (bar := bar_of(rows, rule)) is not None]


def bar_of(rows: list[Row], rule: Rule) -> Bar | None:
    """The rule on the rows; None where either implementation was not measured."""
    ours, others = (_by_size(rows, rule, name) for name in (rule.implementation, rule.against))
    value = MEASURES[rule.measure].value
    measured = {size: value(ours[size], others[size]) for size in sorted(ours.keys() & others.keys())}
    if not measured:
        return None
    worst = max if MEASURES[rule.measure].at_most else min
    size = worst(measured, key=lambda size: measured[size]) if rule.every_size else max(measured)
    return Bar(_name(rule), measured[size], rule, size or None)


def _name(rule: Rule) -> str:
    told = [value if isinstance(value, str) else f"{key} {value}" for key, value in rule.where.items()]
    return ", ".join(told if rule.implementation == Rule.implementation else [*told, rule.implementation])


def _by_size(rows: list[Row], rule: Rule, implementation: str) -> dict[int, Row]:
    wanted = rule.where | {"implementation": implementation}
    least, most = rule.elements
    fitting = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    return {row.get("elements", 0): row for row in fitting if least <= row.get("elements", 0) <= most}


def print_bars(found: list[Bar], note: str) -> None:
    """A line a bar, and what must be known to read them."""
    print(f"\nbars ({note})" if found else "\nno bars: nothing that they are measured by was run")
    print(*found, sep="\n")
    print(f"{sum(not bar.met for bar in found)} of {len(found)} missed")

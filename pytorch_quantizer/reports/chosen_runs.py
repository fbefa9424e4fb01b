"""Which of many runs a page shows tensor by tensor and class by class; the others are points of its charts.
What is shown of them is report.py's.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.reports.runs_table import runs_table
from pytorch_quantizer.reports.sources import Run
from pytorch_quantizer.reports.tradeoff import tradeoff_points

MOST_RUNS = 4


def chosen_runs(runs: Sequence[Run], named: Sequence[str] = ()) -> list[Run]:
    """Those that are named, whatever their number; else all of up to MOST_RUNS; else the best.

    The best are the MOST_RUNS most accurate on the Pareto front of accuracy against size, in the order given.
    Raises InputError for a name that no run has.
    """
    if named:
        _check_names([run.name for run in runs], named)
        return [run for run in runs if run.name in named]
    if len(runs) <= MOST_RUNS:
        return list(runs)
    points = tradeoff_points(runs_table(runs))
    best = points[points["front"]].sort_values("percent", ascending=False, kind="stable").head(MOST_RUNS)
    return [runs[number] for number in sorted(best.index)]


def _check_names(known: Sequence[str], named: Sequence[str]) -> None:
    for name in named:
        if name not in known:
            close = difflib.get_close_matches(name, known, 3, 0)
            given = f"such as {', '.join(close)}" if close else "of which there is none"
            raise InputError(f"--detail must name folders of `pq run` that are given, {given}; got {name!r}")

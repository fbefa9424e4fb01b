"""Running a sweep: which points are still to be measured, and their rows put into the table as they come.
Who measures them is local_workers.py's or ray_workers.py's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.experiments.cells import code_digest
from pytorch_quantizer.sweeps.keys import keyed
from pytorch_quantizer.sweeps.lock import locked
from pytorch_quantizer.sweeps.origins import Origins
from pytorch_quantizer.sweeps.point import Point
from pytorch_quantizer.sweeps.recipe_files import write_recipes
from pytorch_quantizer.sweeps.results import Results
from pytorch_quantizer.sweeps.tasks import Outcome, Task, Workers

ERRORS = "errors"  # folder of tracebacks, a file a failed point


class Listener(Protocol):
    """Who is told of rows."""

    def __call__(self, row: Mapping[str, Any]) -> None:
        """A row that stands in the table; also those that stood there already."""
        ...


@dataclass(frozen=True)
class Rerun:
    """Which finished points are measured again: failed ones, and those of another code unless any_code."""

    failed: bool = False
    any_code: bool = False

    def wants(self, row: Mapping[str, Any] | None) -> bool:
        """Whether the point of this row, None for one without, is to be measured."""
        if row is None or (self.failed and row["error"]):
            return True
        return not self.any_code and row["code"] != code_digest(any_machine=True)


@dataclass(frozen=True)
class Summary:
    """points: those of the plan, each once. measured, failed: in this run. kept, kept_failed: from earlier ones.

    repeated: points of the plan that are others under another name. others: rows of other plans, settings or weights,
    which stay in the table. startup_seconds: until workers could measure;
    running_seconds: from then on; point_seconds, loading_seconds: sums over the points measured, whoever measured them.
    """

    points: int
    measured: int
    failed: int
    kept: int
    kept_failed: int
    repeated: int
    others: int
    startup_seconds: float
    running_seconds: float
    point_seconds: float
    loading_seconds: float


def run_sweep(
    points: Sequence[Point],
    folder: Path,
    make_workers: Callable[[], Workers],
    *,
    rerun: Rerun = Rerun(),
    begun: Callable[[int, int], None] = lambda pending, kept: None,
    told: Callable[[Outcome, int, int], None] = lambda outcome, done, of: None,
    logged: Listener = lambda row: None,
) -> Summary:
    """Measure the points that the folder's table doesn't hold; at its end the table is in their order.

    begun: how many points are to be measured, and how many were found. told: each outcome, and how many of this run's
    points are done. Raises InputError where another sweep holds the folder, its table is damaged, or weights or images
    can't be read.
    """
    clock = _Clock()
    with locked(folder):
        results, origins = Results(folder), Origins(folder)
        tasks = [Task(key, point) for key, point in keyed(points).items()]
        wanted = {task.key for task in tasks if rerun.wants(results.find(task.key))}
        pending = by_network([task for task in tasks if task.key in wanted])
        kept = [row for task in tasks if task.key not in wanted and (row := results.find(task.key)) is not None]
        write_recipes(points, folder)
        begun(len(pending), len(kept))
        for row in kept:
            logged(row)
        with _finished(results, tasks), _made(make_workers, bool(pending)) as workers:
            clock.ready()
            for outcome in workers.outcomes(pending) if workers else ():
                row = _put(results, origins, outcome)
                clock.add(outcome)
                told(outcome, len(clock.outcomes), len(pending))
                logged(row)
            clock.end()
        others = len(results) - sum(results.find(task.key) is not None for task in tasks)
    return clock.summary(kept, points=len(tasks), repeated=len(points) - len(tasks), others=others)


def by_network(tasks: Sequence[Task]) -> list[Task]:
    """The same, those of one network behind one another: a worker keeps one."""
    order: dict[Any, int] = {}
    for task in tasks:
        order.setdefault(task.point.network, len(order))
    return sorted(tasks, key=lambda task: order[task.point.network])


class _Clock:
    """When a run's parts ended, and what was measured."""

    def __init__(self) -> None:
        self._times = [time.perf_counter()]
        self.outcomes: list[tuple[bool, float, float]] = []  # whether it failed, its seconds, those of loading

    def ready(self) -> None:
        self._times.append(time.perf_counter())

    end = ready

    def add(self, outcome: Outcome) -> None:
        row = outcome.measured.row
        self.outcomes.append((bool(row["error"]), row.get("seconds") or 0.0, outcome.measured.loading_seconds))

    def summary(self, kept: Sequence[Mapping[str, Any]], *, points: int, repeated: int, others: int) -> Summary:
        start, ready, end = self._times
        return Summary(
            points=points,
            measured=len(self.outcomes),
            failed=sum(failed for failed, _, _ in self.outcomes),
            kept=len(kept),
            kept_failed=sum(bool(row["error"]) for row in kept),
            repeated=repeated,
            others=others,
            startup_seconds=ready - start,
            running_seconds=end - ready,
            point_seconds=sum(seconds for _, seconds, _ in self.outcomes),
            loading_seconds=sum(loading for _, _, loading in self.outcomes),
        )


def _put(results: Results, origins: Origins, outcome: Outcome) -> dict[str, Any]:
    row = {"code": code_digest(any_machine=True), **outcome.measured.row, "key": outcome.task.key}
    traceback = results.folder / ERRORS / f"{outcome.task.key}.txt"
    if outcome.measured.trace:
        write_atomically(traceback, outcome.measured.trace.encode())
    else:
        traceback.unlink(missing_ok=True)  # of an earlier try
    origins.add(row["code"], outcome.measured.origin)
    results.put(row)
    return row


@contextmanager
def _finished(results: Results, tasks: Sequence[Task]) -> Iterator[None]:
    """Whatever ends the run, the table is in order and results.parquet has it all."""
    try:
        yield
    finally:
        results.finish([task.key for task in tasks])


@contextmanager
def _made(make_workers: Callable[[], Workers], needed: bool) -> Iterator[Workers | None]:
    if not needed:
        yield None
        return
    workers = make_workers()
    try:
        workers.wait_ready()
        yield workers
    finally:
        workers.stop()

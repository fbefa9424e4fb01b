"""A grid of recipes, networks, data sets and seeds into one table, over many processes or machines.

  pq sweep scripts/configs/sweep_digits.yaml
      a look at it: the bundled ResNet-20 on handwritten digits under a few recipes

  pq sweep scripts/configs/sweep_cifar10.yaml --data DIR --jobs 2
      DIR holds CIFAR-10 and resnet20.th

  pq sweep SWEEP.yaml --ray auto --gpus-per-point 0.5
      on a Ray cluster that is running, two points a GPU; every node sees images and weights under the same path

SWEEP.yaml holds `recipes` (shipped names, files, or fields with a `grid` over some of them) and may hold `datasets`,
`models` (arch, checkpoint, datasets: those it is for), `seeds` and `settings` (the flags below); or `points`, a list of
single ones. Keys that begin with an underscore are comments. Every point becomes a row of OUTPUT/results.csv as soon as
it is measured, and of results.parquet (extra [sweep]) in the end. What was stopped, or killed, goes on with the same
command: finished points are skipped. A point that fails is a row with its error, its traceback in OUTPUT/errors; the
others go on, and the exit code is 1. A row of another version of the code is measured again, unless --any-code.
OUTPUT/recipes has each recipe as a file for `pq run --recipe`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jsonargparse

from pytorch_quantizer.command_line import add_flags, command_parser, from_flags
from pytorch_quantizer.commands.report_flag import add_report_flag, check_report, write_report_of
from pytorch_quantizer.environment import choose_device
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.logbook import LogFlags, open_logbooks
from pytorch_quantizer.reports.table import counted
from pytorch_quantizer.sweeps.local_workers import LocalWorkers
from pytorch_quantizer.sweeps.logged import log_row
from pytorch_quantizer.sweeps.plan import read_plan
from pytorch_quantizer.sweeps.point import Point
from pytorch_quantizer.sweeps.ray_workers import RayWorkers, require_ray
from pytorch_quantizer.sweeps.results import CSV, PARQUET
from pytorch_quantizer.sweeps.run import Rerun, Summary, run_sweep
from pytorch_quantizer.sweeps.settings import Settings
from pytorch_quantizer.sweeps.tasks import Outcome, Workers


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Where:
    """Where points are measured; each field's ``metadata["help"]`` is its flag's help."""

    jobs: int | None = _option(None, "processes of this machine that measure points; default: 1")
    threads: int | None = _option(None, "CPU threads a point; default: the cores divided by the jobs, with --ray 1")
    ray: str | None = _option(None, "a Ray cluster in place of processes here: auto, local, HOST:PORT (extra [ray])")
    gpus_per_point: float = _option(0.0, "with --ray, the share of a GPU that a point takes; 0.5: two share one")


def main(arguments: list[str] | None = None) -> int:
    """Read the file and the flags, measure what isn't in the table yet, say what came out; the exit code."""
    flags = vars(parser().parse_args(arguments))
    where, file = from_flags(Where, flags), Path(flags["file"])
    given = {entry.name: flags[entry.name] for entry in fields(Settings) if entry.name in flags}
    make_workers = workers_of(where)
    logbooks = open_logbooks(from_flags(LogFlags, flags), f"pytorch_quantizer sweep {file.stem}")
    points = on_device(read_plan(file, given)[1], where)
    folder = flags["output"] or Path("results") / file.stem
    check_report(flags["report"])
    rerun = Rerun(failed=flags["retry_failed"], any_code=flags["any_code"])
    summary = run_sweep(
        points, folder, make_workers, rerun=rerun, begun=_begin, told=_tell, logged=lambda row: log_row(logbooks, row)
    )
    _conclude(summary, where, folder)
    write_report_of(flags["report"], folder / CSV)
    return int(summary.failed + summary.kept_failed > 0)


def parser() -> jsonargparse.ArgumentParser:
    """The file, and the flags: where to measure, what is measured again, settings of all points."""
    made = command_parser("sweep", __doc__, "SWEEP.yaml [flags]")
    made.add_argument("file", help="the sweep, as YAML or JSON")
    made.add_argument("--output", type=Path, help=f"folder for {CSV} and {PARQUET}; default: results/NAME_OF_THE_FILE")
    made.add_argument("--retry-failed", action="store_true", help="measure points again whose rows hold an error")
    made.add_argument("--any-code", action="store_true", help="keep rows that another version of the code measured")
    add_report_flag(made)
    add_flags(made, Where, "where to measure")
    add_flags(made, LogFlags, "rows written down elsewhere too, a run each")
    add_flags(made, Settings, "settings of all points (default: as the file's settings say)", optional=True)
    return made


def workers_of(where: Where) -> Callable[[], Workers]:
    """What starts the workers. Raises InputError for flags that don't go together, and where Ray isn't installed."""
    if where.ray is not None:
        require_ray()
        if where.jobs is not None:
            raise InputError("--jobs counts processes of this machine: leave it out with --ray, which has its own")
        address, threads = where.ray, 1 if where.threads is None else where.threads
        return lambda: RayWorkers(address, threads, where.gpus_per_point)
    if where.gpus_per_point:
        raise InputError("--gpus-per-point is Ray's to give: add --ray ADDRESS, or leave it out")
    jobs = 1 if where.jobs is None else where.jobs
    if jobs < 1:
        raise InputError(f"--jobs must be 1 or more, got {jobs}")
    share = where.threads if where.threads is not None else max(1, cores() // jobs)
    return lambda: LocalWorkers(jobs, share)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def on_device(points: list[Point], where: Where) -> list[Point]:
    """The points with their device named: on a cluster the one that ``gpus_per_point`` means, here what works."""
    remote = None if where.ray is None else "cuda" if where.gpus_per_point else "cpu"
    return [
        replace(point, config=replace(point.config, device=point.config.device or remote or choose_device(None).type))
        for point in points
    ]


def _begin(pending: int, kept: int) -> None:
    print(f"{pending + kept} points: {kept} found in the table, {pending} to be measured", flush=True)


def _tell(outcome: Outcome, done: int, of: int) -> None:
    row = outcome.measured.row
    said = row["error"]
    if not said:
        said = f"top-1 {row['top1']:.2%}, float32 {row['fp32_top1']:.2%}  ({row['seconds']:.1f} s)"
    print(f"[{done}/{of}] {outcome.task.point}  {said}", flush=True)


def _conclude(summary: Summary, where: Where, folder: Path) -> None:
    failed = summary.failed + summary.kept_failed
    notes = f"; {summary.repeated} of the file are others under another name" if summary.repeated else ""
    notes += f"; {counted(summary.others, 'row')} of other settings or weights beside them" if summary.others else ""
    print(f"{summary.points} points: {summary.measured} measured, {summary.kept} kept, {failed} failed{notes}")
    if summary.measured:
        print(
            f"start-up {summary.startup_seconds:.1f} s, then {summary.running_seconds:.1f} s for points of "
            f"{summary.point_seconds:.1f} s, and loading and float networks of {summary.loading_seconds:.1f} s"
        )
    if failed:
        print("--retry-failed measures failed points again")
    print(f"wrote {folder / CSV}")

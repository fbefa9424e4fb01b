"""What a sweep costs beside the points themselves.

python benchmarks/sweep_overhead.py --data DIR [--sweep FILE] [--points 12] [--turns 5] [--json FILE]

The points themselves: as many processes as jobs, each with its share of the points in a plain loop, nothing written,
from when all can measure until the last is done. The sweep: `pq sweep`'s own workers and table, from when all can
measure until the last row is on disk. Both begin with processes that have measured nothing; what a process loads, and
the float network's run, is taken from both, and told apart with the start-up. The two run in turns, one thread a point;
the overhead is the median over the turns of the quotient, less 1. It must be 5 % or less. On a machine that has other
work the quotient says little; what doesn't depend on that stands beside it: the time in which a job was not in a point
(of two jobs, with the end, when one has nothing left to do), and the processor time of the process that hands out
points and writes rows, both as shares of the points' seconds.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.sweeps.bench import Bench
from pytorch_quantizer.sweeps.local_workers import LocalWorkers
from pytorch_quantizer.sweeps.plan import read_plan
from pytorch_quantizer.sweeps.point import Point
from pytorch_quantizer.sweeps.run import run_sweep

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "sweep_overhead.json"
SWEEP = ROOT / "scripts" / "configs" / "sweep_cifar10.yaml"
MOST = 0.05


def main() -> None:
    """Time both in turns for one job and for two, print, write; the exit code is 1 for more than MOST."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sweep", type=Path, default=SWEEP)
    parser.add_argument("--points", type=int, default=12, help="of the sweep's, the first")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    require_writable(options.json)
    points = read_plan(options.sweep, {"data": options.data, "device": "cpu"})[1][: options.points]
    rows = [timed(points, jobs, options.turns) for jobs in options.jobs]
    about = {"sweep": options.sweep.name, "points": len(points), "must_be_at_most": MOST}
    record = {**provenance(), **about, "load_average": os.getloadavg(), "rows": rows}
    write_atomically(options.json, f"{json.dumps(record, indent=1)}\n".encode())
    sys.exit(any(row["overhead"] > MOST for row in rows))


def timed(points: Sequence[Point], jobs: int, turns: int) -> dict[str, Any]:
    """Both in turns; which of them comes first changes from turn to turn."""
    found = []
    for turn in range(turns):
        order = (plain, swept) if turn % 2 == 0 else (swept, plain)
        seconds = {run.__name__: run(points, jobs) for run in order}
        found.append(seconds["plain"] | seconds["swept"])
        print(f"{jobs} jobs: {found[-1]}", flush=True)
    overhead = median(turn["sweep_seconds"] / turn["plain_seconds"] for turn in found) - 1
    print(f"{jobs} jobs: overhead {overhead:.2%}, must be <= {MOST:.0%}: {'ok' if overhead <= MOST else 'MISS'}")
    shares = {name: round(median(turn[name] for turn in found), 4) for name in ("between_share", "parent_cpu_share")}
    print(f"{jobs} jobs: {shares}")
    return {"jobs": jobs, "overhead": round(overhead, 4), **shares, "turns": found}


def plain(points: Sequence[Point], jobs: int) -> dict[str, float]:
    """The points themselves."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytorch_quantizer.sweeps.local_workers"])
    pairs = [context.Pipe() for _ in range(jobs)]
    processes = [
        context.Process(target=measure_all, args=(theirs, points[number::jobs]))
        for number, (_, theirs) in enumerate(pairs)
    ]
    for process in processes:
        process.start()
    for ours, _ in pairs:
        ours.recv()  # ready
    start = time.perf_counter()
    for ours, _ in pairs:
        ours.send("go")
    loading = [ours.recv() for ours, _ in pairs]
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return {"plain_seconds": round(seconds - sum(loading) / jobs, 3)}


def measure_all(pipe: Connection, points: Sequence[Point]) -> None:
    """In a process: measure these, and tell what loading took."""
    torch.set_num_threads(1)
    bench = Bench()
    pipe.send("ready")
    pipe.recv()
    measured = [bench.measure(point) for point in points]
    failed = [each.row["error"] for each in measured if each.row["error"]]
    if failed:
        raise RuntimeError(failed[0])
    pipe.send(sum(each.loading_seconds for each in measured))


def swept(points: Sequence[Point], jobs: int) -> dict[str, float]:
    """The same as a sweep, on a fresh table."""
    with tempfile.TemporaryDirectory() as folder:
        ready = []
        summary = run_sweep(points, Path(folder), lambda: Clocked(jobs, 1, ready))
        cpu = time.process_time() - ready[0]
    if summary.failed or summary.measured != len(points):
        raise RuntimeError(f"{summary.failed} points of the sweep failed, {summary.measured} were measured")
    seconds = summary.running_seconds - summary.loading_seconds / jobs
    return {
        "sweep_seconds": round(seconds, 3),
        "point_seconds": round(summary.point_seconds, 3),
        "between_share": round(seconds * jobs / summary.point_seconds - 1, 4),
        "parent_cpu_share": round(cpu / summary.point_seconds, 4),
        "startup_seconds": round(summary.startup_seconds, 3),
        "loading_seconds": round(summary.loading_seconds, 3),
    }


class Clocked(LocalWorkers):
    """LocalWorkers that note the parent's processor time when all are ready."""

    def __init__(self, jobs: int, threads: int, ready: list[float]) -> None:
        super().__init__(jobs, threads)
        self.times = ready

    def wait_ready(self) -> None:
        """Note it."""
        super().wait_ready()
        self.times.append(time.process_time())


if __name__ == "__main__":
    main()

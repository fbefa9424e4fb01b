"""Kill a sweep, and a node of a Ray cluster under one, and compare the rows with those of a sweep left in peace.

python benchmarks/sweep_survival.py --data DIR [--sweep FILE] [--jobs 2] [--kills 2] [--seed 0] [--without-ray]

DIR holds CIFAR-10 and resnet20.th; the sweep is scripts/configs/sweep_cifar10.yaml, 24 points of 500 images. Three runs
of it: unbroken; with SIGKILL to the whole process group at random moments, and resumed; on Ray (two nodes here, a CPU
each) with one node killed in the middle. Rows must be equal in every column but those that hold seconds. Writes
benchmarks/results/sweep_survival.json; the exit code is 1 where rows differ.
"""

import argparse
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import ray_cluster

from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.sweeps.results import CSV, read_results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "sweep_survival.json"
SWEEP = ROOT / "scripts" / "configs" / "sweep_cifar10.yaml"
MEASURED = ["seconds", "quantizing_seconds"]  # the columns that no two runs share
ENDED = (0, 1)  # exit codes of a sweep that went to its end; 1: points failed, which their rows tell
POLL = 0.02  # seconds between looks at the table
PATIENCE = 1200.0  # seconds for a run


def main() -> None:
    """Run the three, print and write what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sweep", type=Path, default=SWEEP)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--without-ray", action="store_true")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args()
    require_writable(options.json)
    arguments = [str(options.sweep), "--data", str(options.data), "--threads", "1"]
    local = [*arguments, "--jobs", str(options.jobs)]
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        unbroken = finish([*local, "--output", f"{folder}/unbroken"], Path(folder, "unbroken"))
        runs = {"unbroken": {"rows": len(unbroken), "seconds": round(time.perf_counter() - start, 1)}}
        runs["killed"] = killed(local, Path(folder, "killed"), unbroken, options.kills, draw)
        if not options.without_ray:
            runs["ray"] = on_ray(arguments, Path(folder, "ray"), unbroken, draw)
    record = {**provenance("cpu", "ray"), "sweep": options.sweep.name, "jobs": options.jobs, "runs": runs}
    write_atomically(options.json, f"{json.dumps(record, indent=1)}\n".encode())
    print(json.dumps(runs, indent=1))
    sys.exit(not all(run.get("same_rows", True) for run in runs.values()))


def killed(
    arguments: Sequence[str], folder: Path, expected: pd.DataFrame, kills: int, draw: random.Random
) -> dict[str, Any]:
    """Start the sweep ``kills`` times and kill it, each time with more rows; then let it end, and compare."""
    arguments = [*arguments, "--output", str(folder)]
    moments: list[dict[str, Any]] = []
    for number in range(kills):
        wanted = draw.randint(1 + number * len(expected) // (kills + 1), (number + 1) * len(expected) // (kills + 1))
        wait, process = draw.uniform(0, 1), start_sweep(arguments)
        try:
            await_rows(folder, wanted, process)
            time.sleep(wait)
        finally:
            kill_group(process)
        moments.append({"killed_at_rows": rows_of(folder), "seconds_behind_row": round(wait, 3), "row": wanted})
    return compared(finish(arguments, folder), expected) | {"kills": moments}


def on_ray(arguments: Sequence[str], folder: Path, expected: pd.DataFrame, draw: random.Random) -> dict[str, Any]:
    """The sweep on two nodes, one of which is killed before half of the rows are there; compared."""
    wanted, wait = draw.randint(1, len(expected) // 2), draw.uniform(0, 0.5)
    with ray_cluster.two_nodes() as nodes:
        process = start_sweep([*arguments, "--ray", nodes.address, "--output", str(folder)])
        try:
            await_rows(folder, wanted, process)
            time.sleep(wait)
            rows = rows_of(folder)
            nodes.kill()
            code = process.wait(PATIENCE)
        finally:
            kill_group(process)
    if code not in ENDED:
        raise RuntimeError(f"the sweep on Ray ended with code {code}:\n{process.stdout.read()}")
    return compared(read_results(folder), expected) | {"node_killed_at_rows": rows, "row": wanted}


def start_sweep(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    """scripts/sweep.py in a process group of its own."""
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )


def finish(arguments: Sequence[str], folder: Path) -> pd.DataFrame:
    """Let a sweep end, and give its table. Raises RuntimeError where it fails."""
    process = start_sweep(arguments)
    try:
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        kill_group(process)
    if process.returncode not in ENDED:
        raise RuntimeError(f"the sweep ended with code {process.returncode}:\n{said}")
    return read_results(folder)


def await_rows(folder: Path, wanted: int, process: "subprocess.Popen[str]") -> None:
    """Return when the table has so many rows. Raises RuntimeError where the sweep ends before."""
    await_true(lambda: rows_of(folder) >= wanted or process.poll() is not None)
    if rows_of(folder) < wanted:
        raise RuntimeError(f"the sweep ended with code {process.returncode} before row {wanted}")


def await_true(is_so: Callable[[], bool]) -> None:
    """Look until it is so."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came of it in {PATIENCE:.0f} s")
        time.sleep(POLL)


def rows_of(folder: Path) -> int:
    """The rows that the table has by now; reading it is also the check that it is always whole."""
    return len(read_results(folder)) if (folder / CSV).exists() else 0


def kill_group(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to the process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def compared(table: pd.DataFrame, expected: pd.DataFrame) -> dict[str, Any]:
    """Whether the rows are the same but for MEASURED, and which columns differ."""
    first, second = (rows.sort_values("key", ignore_index=True).drop(columns=MEASURED) for rows in (table, expected))
    same_keys = list(first["key"]) == list(second["key"])
    differing = [name for name in first if not first[name].equals(second[name])] if same_keys else ["key"]
    return {
        "rows": len(table),
        "duplicates": int(table["key"].duplicated().sum()),
        "failed": int((table["error"] != "").sum()),
        "same_rows": not differing,
        "differing_columns": differing,
    }


if __name__ == "__main__":
    if importlib.util.find_spec("ray") is None and "--without-ray" not in sys.argv:
        sys.exit(
            "sweep_survival.py: error: Ray isn't installed: pip install 'pytorch-quantizer[ray]', or --without-ray"
        )
    main()

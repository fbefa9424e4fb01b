"""torchrun and run_inference.py: the numbers of one process, whatever the number of processes; one of them speaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
JOB = ("--limit", "75", "--batch-size", "10", "--calibration-samples", "55", "--device", "cpu")
ANALYTIC = ("--recipe", "w8a4_aciq")
LEARNED = ("--recipe", "w2a4_statistical", "--tuning-epochs", "1")


def start(script, processes, *flags, **options):
    several = [*TORCHRUN, "--nproc-per-node", str(processes)] if processes > 1 else [sys.executable]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*several, str(SCRIPTS / script), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, **options)


def run_inference(folder, processes, *flags):
    done = start("run_inference.py", processes, *JOB, *flags, "--output", str(folder))
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "result.json").read_text())
    details = json.loads((folder / "details.json").read_text())
    rates = {name: value for name, value in record["quantized"].items() if "latency" not in name}
    return {
        "rates": rates | {"samples": record["samples"], "calibration": record["calibration"]},
        "answers": details["answers"],
        "batches": details["batches"],
        "ranges": pd.read_csv(folder / "layers.csv").to_dict("list"),
        "lines": done.stdout.splitlines(),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return {
        flags: run_inference(tmp_path_factory.mktemp("alone"), 1, *flags, "--summary") for flags in (ANALYTIC, LEARNED)
    }


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "flags"), [(4, ANALYTIC), (3, LEARNED)])
def test_several_processes_come_to_the_numbers_of_one(tmp_path, alone, processes, flags):
    found, wanted = run_inference(tmp_path, processes, *flags, "--summary"), alone[flags]
    for part in ("rates", "answers", "batches"):
        assert found[part] == wanted[part]
    pd.testing.assert_frame_equal(pd.DataFrame(found["ranges"]), pd.DataFrame(wanted["ranges"]), check_exact=True)
    headings = [[line for line in lines if line.startswith("top-1")] for lines in (found["lines"], wanted["lines"])]
    assert headings[0] == headings[1]
    assert len(headings[0]) == 1


def test_a_command_for_one_process_says_so(monkeypatch, capsys):
    from pytorch_quantizer.command_line import run

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stopped:
        run("pq leaderboard", lambda: pytest.fail("it ran"))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "pq leaderboard: error: this command runs in one process: start it without torchrun\n"
    )

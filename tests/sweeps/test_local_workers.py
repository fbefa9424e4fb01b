"""Processes that measure points: each point once, whatever becomes of the process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from benches import Obedient, Stillborn, task

from pytorch_quantizer import InputError
from pytorch_quantizer.sweeps.local_workers import LocalWorkers

HERE = Path(__file__).parent


@pytest.fixture
def workers():
    made = LocalWorkers(2, 1, Obedient)
    yield made
    made.stop()


def test_each_once_whatever_becomes_of_its_process(workers, tmp_path):
    once = f"dies once {tmp_path / 'died'}"
    tasks = [task("fine"), task(once), task("dies"), task("fails"), *(task("fine", seed) for seed in range(1, 6))]
    workers.wait_ready()
    outcomes = list(workers.outcomes(tasks))
    assert Counter(outcome.task.key for outcome in outcomes) == Counter(task.key for task in tasks)
    errors = {outcome.task.key: outcome.measured.row["error"] for outcome in outcomes}
    errors = {key: error for key, error in errors.items() if error}
    assert errors.keys() == {"dies 0", "fails 0"}
    assert errors["fails 0"] == "it fails"
    assert "was ended by signal 9 (SIGKILL), 2 times; " in errors["dies 0"]
    assert (tmp_path / "died").exists()


def test_processes_last_and_share_the_work(workers):
    rows = [outcome.measured.row for outcome in workers.outcomes([task("naps", seed) for seed in range(6)])]
    processes = Counter(row["settings"] for row in rows)
    assert len(processes) == 2
    assert min(processes.values()) >= 2
    again = [outcome.measured.row for outcome in workers.outcomes([task("fine")])]
    assert again[0]["settings"] in processes
    assert str(os.getpid()) not in processes


def test_each_has_its_threads_and_no_interrupts():
    workers = LocalWorkers(1, 1, Obedient)
    try:
        [outcome] = workers.outcomes([task("tells")])
        assert outcome.measured.row["settings"] == "1 threads, SIGINT ignored"
    finally:
        workers.stop()


def test_a_warning_is_one_line_there_too(workers):
    [outcome] = workers.outcomes([task("warns")])
    assert outcome.measured.row["settings"] == "warning: one two\n"


def test_stopped_in_the_middle_none_is_left(workers):
    outcomes = workers.outcomes([task("fine"), task("sleeps"), task("sleeps", 1)])
    assert next(outcomes).task.key == "fine 0"
    processes = multiprocessing.active_children()
    workers.stop()
    assert len(processes) == 2
    assert not any(process.is_alive() for process in processes)


def test_those_that_cannot_start_are_not_started_for_ever():
    workers = LocalWorkers(1, 1, Stillborn)
    try:
        with pytest.raises(RuntimeError, match="ended with code 3 as they start, 3 times"):
            workers.wait_ready()
    finally:
        workers.stop()


@pytest.mark.parametrize(("jobs", "threads"), [(0, 1), (1, 0)])
def test_numbers_below_one(jobs, threads):
    with pytest.raises(InputError, match="must be 1 or more"):
        LocalWorkers(jobs, threads, Obedient)


@pytest.mark.slow
class TestOrphans:
    """Workers of a parent that is killed, in a process of its own."""

    SCRIPT = (
        "from benches import Obedient, task\n"
        "from pytorch_quantizer.sweeps.local_workers import LocalWorkers\n"
        "if __name__ == '__main__':\n"
        "    workers = LocalWorkers(1, 1, Obedient)\n"
        "    for outcome in workers.outcomes([task('fine'), task('sleeps')]):\n"
        "        print(outcome.measured.row['settings'], flush=True)\n"
    )

    def test_end_with_it(self, tmp_path):
        (tmp_path / "parent.py").write_text(self.SCRIPT)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
        parent = subprocess.Popen(
            [sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True, env=environment
        )
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
        end = time.monotonic() + 20
        while is_running(worker) and time.monotonic() < end:
            time.sleep(0.05)
        assert not is_running(worker)


def is_running(process: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

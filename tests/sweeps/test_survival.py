"""A sweep that is stopped, killed, or loses a machine ends with the rows of one left in peace, each once.

benchmarks/sweep_survival.py does the same to ResNet-20 on CIFAR-10.
"""

import os
import random
import signal

import pytest
import small_sweep
import sweep_survival
from sweep_survival import await_rows, compared, kill_group, on_ray, rows_of, start_sweep

from pytorch_quantizer.commands.sweep import main
from pytorch_quantizer.sweeps.results import read_results

SAME = {"rows": 14, "duplicates": 0, "failed": 2, "same_rows": True, "differing_columns": []}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The file, and the rows that it must end with."""
    path = small_sweep.write(tmp_path_factory.mktemp("sweep"))
    return path, small_sweep.measured_here(path)


@pytest.mark.slow
def test_stopped_then_killed_then_finished(sweep, tmp_path, capsys):
    path, expected = sweep
    arguments = [str(path), "--output", str(tmp_path), "--threads", "1", "--jobs", "2"]
    for wanted, number in ((1, signal.SIGINT), (5, signal.SIGKILL)):
        process = start_sweep(arguments)
        try:
            await_rows(tmp_path, wanted, process)
            os.killpg(process.pid, number)
            said = process.communicate(timeout=60)[0]
        finally:
            kill_group(process)
        assert rows_of(tmp_path) >= wanted
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert said.splitlines()[-1].startswith("sweep.py: interrupted")
            assert "Traceback" not in said
    rows = rows_of(tmp_path)
    assert main(arguments) == 1
    assert f"{len(expected)} points: {len(expected) - rows} measured, {rows} kept, 2 failed" in capsys.readouterr().out
    assert compared(read_results(tmp_path), expected) == SAME
    assert list(read_results(tmp_path)["key"]) == list(expected["key"])


@pytest.mark.slow
def test_on_ray_with_a_node_killed(sweep, tmp_path):
    pytest.importorskip("ray", reason="Ray isn't installed (extra [ray])")
    path, expected = sweep
    found = on_ray([str(path), "--threads", "1", "--gpus-per-point", "0.5"], tmp_path, expected, random.Random(0))
    assert found.pop("node_killed_at_rows") < len(expected)
    assert found.pop("row") > 0
    assert found == SAME


class TestTheComparisonItself:
    """That of the benchmark, which would be worth nothing if it let things pass."""

    def test_sees_a_row_twice_and_one_that_is_missing(self, sweep):
        import pandas as pd

        table = sweep[1]
        found = compared(pd.concat([table, table.iloc[:1]]), table)
        assert (found["duplicates"], found["same_rows"]) == (1, False)
        assert not compared(table.iloc[1:], table)["same_rows"]

    @pytest.mark.parametrize("column", ["top1", "error", "size_bytes", "recipe"])
    def test_sees_another_value(self, sweep, column):
        other = sweep[1].copy()
        other.loc[3, column] = {"top1": 0.123, "size_bytes": 5}.get(column, "other")
        assert compared(other, sweep[1])["differing_columns"] == [column]

    def test_looks_past_seconds_alone(self):
        assert sweep_survival.MEASURED == ["seconds", "quantizing_seconds"]

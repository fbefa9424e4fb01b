"""pq sweep: a file's points as rows, and flags over the file; what kills it is tests/sweeps/test_survival.py's."""

import pytest
from command_runs import failing_line

from pytorch_quantizer.commands import sweep as command
from pytorch_quantizer.commands.sweep import Where, on_device, workers_of
from pytorch_quantizer.sweeps import ray_workers
from pytorch_quantizer.sweeps.plan import parse_plan
from pytorch_quantizer.sweeps.results import read_results

TEXT = """
recipes: [w8a8, {name: fails, overrides: [{layers: nothing.*, weights: int4}]}]
settings: {limit: 40, calibration_samples: 64, device: cpu}
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "two.yaml").write_text(TEXT)
    return tmp_path / "two.yaml"


def test_points_become_rows_and_a_failed_one_the_exit_code(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main([str(file), "--limit", "20"]) == 1
    table = read_results(tmp_path / "results" / "two")
    assert list(table["recipe"]) == ["w8a8", "fails"]
    assert list(table["samples"].fillna(0)) == [20, 0]
    assert table["top1"].iloc[0] > 0.5
    assert table["error"].iloc[1].startswith("InputError: override 'nothing.*' matches no layer")
    said = capsys.readouterr().out
    assert "[1/2] digits resnet20 w8a8 seed 0  top-1 " in said
    assert "2 points: 2 measured, 0 kept, 1 failed" in said
    assert "results.csv" in said
    assert "2 points: 0 found in the table, 2 to be measured" in said
    assert command.main([str(file), "--limit", "20"]) == 1
    assert "2 points: 0 measured, 2 kept, 1 failed\n" in capsys.readouterr().out
    assert command.main([str(file), "--limit", "20", "--retry-failed"]) == 1
    assert "2 points: 1 measured, 1 kept, 1 failed" in capsys.readouterr().out
    assert command.main([str(file), "--limit", "10"]) == 1
    assert "2 measured, 0 kept, 1 failed; 2 rows of other settings or weights beside them" in capsys.readouterr().out


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--jobs", "0"), "--jobs must be 1 or more, got 0"),
            (("--threads", "0"), "--jobs and --threads must be 1 or more"),
            (("--gpus-per-point", "0.5"), "add --ray ADDRESS"),
            (("--limit", "0"), "limit must be a whole number of 1 or more"),
            (("--device", "tpu"), "device must be cpu, cuda or cuda:N"),
        ],
    )
    def test_one_line(self, file, capsys, tmp_path, arguments, said):
        assert said in failing_line(command, capsys, file, "--output", tmp_path / "out", *arguments)

    def test_a_file_that_is_not_there(self, capsys, tmp_path):
        assert "none.yaml: can't be read" in failing_line(command, capsys, tmp_path / "none.yaml")

    def test_ray_that_is_not_there(self, file, capsys, monkeypatch):
        real = ray_workers.importlib.util.find_spec
        monkeypatch.setattr(ray_workers.importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
        assert "pip install 'pytorch-quantizer[ray]'" in failing_line(command, capsys, file, "--ray", "auto")

    def test_jobs_are_not_rays(self, file, capsys, monkeypatch):
        monkeypatch.setattr(command, "require_ray", lambda: None)
        assert "leave it out with --ray" in failing_line(command, capsys, file, "--ray", "auto", "--jobs", "2")


@pytest.mark.parametrize(("jobs", "threads", "given"), [(None, 8, 8), (3, None, 2), (16, None, 1), (2, 5, 5)])
def test_cores_are_divided_among_jobs(monkeypatch, jobs, threads, given):
    made = []
    monkeypatch.setattr(command, "cores", lambda: 8)
    monkeypatch.setattr(command, "LocalWorkers", lambda *numbers: made.append(numbers))
    workers_of(Where(jobs=jobs, threads=threads))()
    assert made == [(jobs or 1, given)]


@pytest.mark.parametrize(
    ("where", "asked", "device"),
    [
        (Where(ray="auto"), None, "cpu"),
        (Where(ray="auto", gpus_per_point=0.5), None, "cuda"),
        (Where(ray="auto", gpus_per_point=0.5), "cpu", "cpu"),
        (Where(), "cpu", "cpu"),
    ],
)
def test_every_point_has_its_device_named(where, asked, device):
    points = parse_plan({"recipes": ["w8a8"]}, {"device": asked})[1]
    assert [point.config.device for point in on_device(points, where)] == [device]

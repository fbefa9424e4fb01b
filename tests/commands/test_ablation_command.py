"""pq ablation: the table it promises, resumed after an interruption, and one line for a user's mistake."""

import json
from pathlib import Path

import pytest
import torch
from command_runs import failing_line

from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands import ablation as command
from pytorch_quantizer.experiments import cells
from pytorch_quantizer.experiments.ablation import ALL, ALLOCATION, BASELINE, CLIPPING, CORRECTION, ROWS

FEW = ("--limit", "20", "--calibration-samples", "32", "--batch-size", "32", "--device", "cpu")
ROWS_OF_THE_PAPER = [BASELINE, CLIPPING["laplace"], ALLOCATION, CORRECTION, ALL]


def start(folder, *arguments):
    command.main([*FEW, "--bits", "w3a3", "--output", str(folder), *arguments])
    return (folder / "ablation.json").read_bytes(), (folder / "ablation.md").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    return folder, start(folder)


class TestTheEmbeddedJob:
    def test_the_record(self, unbroken):
        record = json.loads(unbroken[1][0])
        [network] = record["networks"]
        assert (record["dataset"], network["arch"], network["fp32"]["samples"]) == ("digits", "resnet20", 20)
        assert record["calibration"] == {"split": "train", "samples": 32}
        assert record.keys() >= {"versions", "machine", "date", "seed", "limit", "published"}
        rows = [(cell["setting"], cell["row"], cell["deployable"]) for cell in network["cells"]]
        assert rows == [
            *(("paper", row, False) for row in ROWS_OF_THE_PAPER),
            *(("deployable", row, True) for row in ROWS),
        ]
        assert all(cell["recipe"]["weights"] == "int3" and cell["column"] == "3W3A" for cell in network["cells"])

    def test_quantization_took_place(self, unbroken):
        [network] = json.loads(unbroken[1][0])["networks"]
        assert len({cell["top1"] for cell in network["cells"]}) > 1

    def test_the_table_says_of_each_row_whether_it_is_deployable(self, unbroken):
        lines = unbroken[1][1].decode().splitlines()
        for rows, word in ((ROWS_OF_THE_PAPER, "no"), (ROWS, "yes")):
            for row in rows:
                assert any(line.startswith(f"| {row} | {word} | ") for line in lines), row


class TestInterrupted:
    @pytest.fixture
    def computed(self, monkeypatch):
        """The names of the recipes that were computed, not kept."""
        done, real = [], cells.quantize

        def counted(model, recipe, *args, **kwargs):
            done.append(recipe.name)
            return real(model, recipe, *args, **kwargs)

        monkeypatch.setattr(cells, "quantize", counted)
        return done

    def test_nothing_is_computed_again(self, unbroken, computed):
        folder, files = unbroken
        assert start(folder) == files
        assert computed == []

    def test_another_column_computes_that_column_alone(self, unbroken, computed, tmp_path):
        (tmp_path / "cells").mkdir()
        for path in (unbroken[0] / "cells").iterdir():
            (tmp_path / "cells" / path.name).write_bytes(path.read_bytes())
        start(tmp_path, "--settings", "paper", "--bits", "w3a3,w8a8")
        assert computed == [f"paper 8W8A {BASELINE}"]

    def test_another_quota_computes_what_it_divides(self, unbroken, computed, tmp_path):
        (tmp_path / "cells").mkdir()
        for path in (unbroken[0] / "cells").iterdir():
            (tmp_path / "cells" / path.name).write_bytes(path.read_bytes())
        record, table = start(tmp_path, "--quota", "bins")
        assert computed == [f"paper 3W3A {ALLOCATION}", f"paper 3W3A {ALL}"]
        assert json.loads(record)["quota"] == "bins"
        assert b"quota bins" in table

    def test_another_seed_computes_every_cell(self, unbroken, computed, tmp_path):
        (tmp_path / "cells").mkdir()
        for path in (unbroken[0] / "cells").iterdir():
            (tmp_path / "cells" / path.name).write_bytes(path.read_bytes())
        start(tmp_path, "--settings", "paper", "--seed", "1")
        assert len(computed) == len(ROWS_OF_THE_PAPER)

    def test_a_killed_run_ends_with_the_same_files(self, unbroken, tmp_path, monkeypatch):
        real, done = cells.quantize, []

        def killed(model, recipe, *args, **kwargs):
            if len(done) == 4:
                raise KeyboardInterrupt
            done.append(recipe.name)
            return real(model, recipe, *args, **kwargs)

        monkeypatch.setattr(cells, "quantize", killed)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path)
        assert not (tmp_path / "ablation.md").exists()
        after = []
        monkeypatch.setattr(cells, "quantize", lambda m, r, *a, **k: after.append(r.name) or real(m, r, *a, **k))
        assert start(tmp_path) == unbroken[1]
        assert len(after) == len(ROWS_OF_THE_PAPER) + len(ROWS) - 4
        assert not {*done} & {*after}


def test_ctrl_c_is_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        run("pq ablation", interrupted)
    assert stopped.value.code == 130
    said = "pq ablation: interrupted; what it had finished and keeps for another run is kept, the rest is not\n"
    assert capsys.readouterr().err == said


class TestMistakes:
    @pytest.fixture(autouse=True)
    def _nothing_is_computed(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(cells, "quantize", lambda *_, **__: pytest.fail("work was done"))

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--arch", "resnet21"], "resnet21"),
            (["--arch", "resnet20,"], "--arch must be a list with commas"),
            (["--arch", "resnet20,resnet21"], "resnet21"),
            (["--arch", "resnet20,resnet32"], "no weights for resnet32 on digits: give --checkpoint FILE"),
            (
                ["--arch", "resnet20,resnet32", "--checkpoint", "x.th"],
                "as many files, with commas, as there are networks",
            ),
            (["--quota", "levels"], "--quota"),
            (["--bits", "w4a17"], "w4a17"),
            (["--settings", "papers"], "papers"),
            (["--checkpoint", "missing.th"], "missing.th"),
            (["--limit", "0"], "limit"),
            (["--calibration-samples", "0"], "calibration"),
            (["--data", "nowhere"], "nowhere"),
            (["--statistics-file", "x.safetensors"], "statistics-file"),
            (["--no-such-flag"], "no-such-flag"),
        ],
    )
    def test_is_named(self, capsys, arguments, named):
        assert named in failing_line(command, capsys, *arguments)
        assert [*Path.cwd().rglob("*.json")] == []  # before any work

    def test_an_output_that_cannot_be_written_is_noticed_before_the_work(self, capsys, tmp_path):
        (tmp_path / "file").write_text("in the way")
        assert str(tmp_path / "file") in failing_line(command, capsys, "--output", tmp_path / "file")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
    def test_a_cuda_device_that_is_not_there(self, capsys):
        assert "--device cpu" in failing_line(command, capsys, "--device", "cuda")


def test_several_networks_each_have_their_table(tmp_path, monkeypatch):
    """The paper's networks in one run; weights and images stand in for ImageNet's."""

    class Standing:
        def __init__(self, config, store):
            self.config, self.split, self.calibration = config, "test", range(7)

        def measure(self, recipe):
            rate = {"top1": 0.5, "top5": 0.9, "top1_interval": [0.4, 0.6], "correct": 5, "samples": 10}
            return rate | {"code": "x", "skipped_images": [], "seconds": 1.0, "kept": False}

    monkeypatch.setattr(command, "Network", Standing)
    archs = "vgg16,vgg16_bn,inception_v3,resnet18,resnet50,resnet101"
    command.main(["--dataset", "imagenet", "--arch", archs, "--output", str(tmp_path)])
    text = (tmp_path / "ablation.md").read_text()
    assert [line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith("## ")] == archs.split(",")
    assert "| all | no | 50.00 % | ? | 50.00 % | ? | 50.00 % | 73.33 % |" in text
    assert [n["arch"] for n in json.loads((tmp_path / "ablation.json").read_text())["networks"]] == archs.split(",")

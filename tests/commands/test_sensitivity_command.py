"""pq sensitivity: the diagnosis writes what it promises; a user's mistake is one line and exit code 2."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_runs import failing_line

from pytorch_quantizer.commands import sensitivity as command
from pytorch_quantizer.experiments.sensitivity_report import answer, ranking

RATES = {"alone_top1", "all_but_top1"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sensitivity")
    few = ["--limit", "20", "--calibration-samples", "32", "--device", "cpu"]
    command.main([*few, "--output", str(folder)])
    return folder


class TestTheEmbeddedJob:
    def test_a_row_a_layer_worst_first(self, written):
        table = pd.read_csv(written / "sensitivity.csv", keep_default_na=False)
        assert {"layer", "weights", "activations", "alone_sqnr_db", "all_but_sqnr_db", *RATES} <= set(table)
        assert len(table) == 30  # 20 layers, 9 additions, the pooling
        assert table["layer"].is_unique
        assert (table["weights"] == "int8").sum() == 20
        assert table["alone_sqnr_db"].is_monotonic_increasing  # 20 images: no drop is more than chance

    def test_the_record(self, written):
        record = json.loads((written / "sensitivity.json").read_text())
        assert (record["dataset"], record["arch"], record["samples"], record["what"]) == (
            "digits",
            "resnet20",
            20,
            "both",
        )
        assert record["recipe"]["name"] == "w8a4_aciq"
        assert record["calibration"] == {"split": "train", "samples": 32}
        assert record.keys() >= {"versions", "machine", "date", "float_top1", "quantized_top1", "quantized_sqnr_db"}
        table = pd.read_csv(written / "sensitivity.csv", keep_default_na=False)
        assert [row["layer"] for row in record["layers"]] == list(table["layer"])
        assert record["answer"].startswith(f"{table['layer'][0]} hurts most")

    def test_the_picture_needs_no_network(self, written):
        page = (written / "sensitivity.html").read_text()
        assert "<script" in page
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
        assert "layer3.2.conv2" in page


def test_the_closing_line_is_the_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_text("overrides: [{layers: layer2.0.conv1, weights: int1}]\n")
    few = ["--limit", "60", "--calibration-samples", "32", "--device", "cpu"]
    command.main([*few, "--recipe", str(bad), "--what", "weights"])
    folder = Path("results/sensitivity_digits_resnet20_bad_weights")
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-1].startswith("layer2.0.conv1 hurts most: alone it costs ")
    assert lines[-1] == json.loads((folder / "sensitivity.json").read_text())["answer"]
    assert any(line.split()[:2] == ["layer2.0.conv1", "int1"] for line in lines)
    assert str(folder / "sensitivity.html") in lines[-3]


class TestTheReport:
    @pytest.fixture
    def table(self):
        table = pd.DataFrame(
            {
                "layer": ["b", "a"],
                "weights": ["int2", "float32"],
                "activations": ["uint4", "float32"],
                "tensors": ["x", ""],
                "alone_top1": [0.6, 0.9],
                "alone_sqnr_db": [3.21, float("inf")],
                "alone_drop": [0.3, 0.0],
                "alone_p": [0.0001, 1.0],
                "all_but_top1": [0.875, 0.6],
                "all_but_sqnr_db": [40.0, 3.0],
                "all_but_gain": [0.275, -1e-18],
            }
        )
        table.attrs = {"samples": 100, "float_top1": 0.9, "quantized_top1": 0.6, "quantized_sqnr_db": 3.0}
        return table

    def test_answer(self, table):
        assert answer(table) == (
            "b hurts most: alone it costs 30.00 points (SQNR 3.2 dB); all but it regain 27.50 points"
        )

    def test_answer_where_chance_explains_the_drop(self, table):
        said = answer(table.assign(alone_p=0.5))
        assert said.startswith("b hurts most by its SQNR, 3.2 dB; alone it costs 30.00 points")
        assert "on 100 images no layer's own drop stands out from chance" in said

    def test_ranking(self, table):
        first, second = ranking(table).splitlines()[-2:]
        assert first.split() == ["b", "int2", "uint4", "-30.00", "3.2", "+27.50", "40.0"]
        assert second.split() == ["a", "float32", "float32", "+0.00", "∞", "+0.00", "3.0"]


class TestMistakes:
    @pytest.fixture(autouse=True)
    def _in_an_empty_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--what", "biases"], "biases"),
            (["--recipe", "nope"], "nope"),
            (["--clip", "laplac"], "laplac"),
            (["--limit", "0"], "limit"),
            (["--arch", "resnet21"], "resnet21"),
            (["--checkpoint", "missing.th"], "missing.th"),
            (["--no-such-flag"], "no-such-flag"),
            (["--data", "nowhere"], "nowhere is not a folder"),
        ],
    )
    def test_is_named(self, capsys, arguments, named):
        assert named in failing_line(command, capsys, *arguments)

    def test_an_output_that_cannot_be_written_is_noticed_before_the_work(self, capsys, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setattr(command, "sensitivity", lambda *_, **__: pytest.fail("work was done"))
        assert str(tmp_path / "file") in failing_line(command, capsys, "--output", tmp_path / "file")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
    def test_a_cuda_device_that_is_not_there(self, capsys):
        assert "--device cpu" in failing_line(command, capsys, "--device", "cuda")


def test_help_says_how_many_images():
    text = command.parser().format_help()
    assert "null: all (default: 1000)" in " ".join(text.split())
    assert "type:" not in text

"""pq bench: every form of a network in one table, each with its label; a user's mistake is one line."""

import json

import pandas as pd
import pytest
import torch
from command_runs import failing_line

from pytorch_quantizer.commands import bench as command
from pytorch_quantizer.commands import export

FEW = ("--calibration-samples", "64", "--device", "cpu", "--batches", "1,3", "--repeats", "2")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    report = ["--report", str(folder / "page.html")]
    command.main(["--recipe", "w8a8", *FEW, "--threads", "1", "--output", str(folder), *report])
    return folder


def test_a_row_a_form_and_batch_each_with_its_label(measured):
    table = pd.read_csv(measured / "bench.csv")
    assert list(zip(table["model"], table["batch_size"], table["label"], strict=True)) == [
        *(("float32", 1, "float32"), ("float32", 3, "float32")),
        *(("quantized", 1, "simulated"), ("quantized", 3, "simulated")),
        *(("float32, ONNX", 1, "float32"), ("float32, ONNX", 3, "float32")),
        *(("quantized, ONNX", 1, "integer"), ("quantized, ONNX", 3, "integer")),
    ]
    assert (table["minimum_ms"] <= table["median_ms"]).all()
    assert (table["minimum_ms"] > 0).all()
    assert set(table["threads"]) == {1}
    assert set(table["repeats"]) == {2}
    assert [name.split()[0] for name in table["runtime"]] == ["PyTorch"] * 4 + ["ONNX"] * 4


def test_bytes_are_those_of_each_forms_file(measured):
    table = pd.read_csv(measured / "bench.csv").groupby("model")[["bytes", "file"]].first()
    assert table.loc["quantized", "bytes"] < 0.28 * table.loc["float32", "bytes"]
    assert table.loc["quantized, ONNX", "bytes"] < 0.31 * table.loc["float32, ONNX", "bytes"]
    assert table["file"].str.startswith("file on disk: ").all()


def test_the_record(measured):
    record = json.loads((measured / "bench.json").read_text())
    assert record.keys() >= {"dataset", "arch", "image", "seed", "recipe", "rows", "left_out", "versions", "machine"}
    assert (record["dataset"], record["arch"], record["image"]) == ("digits", "resnet20", [1, 8, 8])
    assert record["left_out"] == {}
    assert len(record["rows"]) == 8


def test_the_page_has_every_form(measured):
    page = (measured / "page.html").read_text(encoding="utf-8")
    assert "Latency and size" in page
    assert all(form in page for form in ("float32, ONNX, batch of 3", "quantized, batch of 1"))


def test_what_cannot_be_exported_is_left_out_and_said(tmp_path, capsys):
    command.main(["--recipe", "w4a4_paper", *FEW, "--output", str(tmp_path)])
    table = pd.read_csv(tmp_path / "bench.csv")
    assert set(table["model"]) == {"float32", "quantized", "float32, ONNX"}
    assert "quantized, ONNX is left out: " in capsys.readouterr().out


def test_a_packed_checkpoint_is_timed_beside_its_float_network(tmp_path, capsys):
    export.main(["--recipe", "w4a8_statistical", *FEW[:4], "--save", str(tmp_path / "net.safetensors")])
    command.main(["--packed", str(tmp_path / "net.safetensors"), *FEW[2:], "--output", str(tmp_path / "out")])
    assert "resnet20 on digits: net, images 1 x 8 x 8" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out" / "bench.csv").groupby("model")["bytes"].first()
    assert table["quantized"] == (tmp_path / "net.safetensors").stat().st_size
    assert table["float32"] > 6 * table["quantized"]
    record = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert record["recipe"]["weights"] == "int4"


def test_few_images_are_taken_again():
    images = torch.arange(6.0).reshape(3, 2)
    assert command.run_speed.__module__ == "pytorch_quantizer.experiments.speed"
    from pytorch_quantizer.experiments.speed import enough

    assert enough(images, 7)[:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]
    assert enough(images, 2).shape == (2, 2)


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--batches", "0"], "--batches must be whole numbers from 1, with commas between, got '0'"),
            (["--batches", "1,b"], "got '1,b'"),
            (["--recipe", "nope"], "nope"),
            (["--packed", "net.safetensors", "--recipe", "w8a8"], "quantized already: leave out --recipe"),
            (["--packed", "nowhere.safetensors"], "nowhere.safetensors"),
            (["--repeats", "0"], "repeats must be 1 or more, got 0"),
            (["--threads", "0"], "threads must be 1 or more, got 0"),
            (["--limit", "3"], "--limit"),
            (["--data", "nowhere"], "nowhere is not a folder"),
        ],
    )
    def test_is_named(self, capsys, tmp_path, monkeypatch, arguments, named):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(command, "quantize_network", lambda *_: pytest.fail("work was done"))
        assert named in failing_line(command, capsys, *FEW[:4], *arguments)

    def test_an_output_that_cannot_be_written_is_noticed_before_the_work(self, capsys, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setattr(command, "quantize_network", lambda *_: pytest.fail("work was done"))
        assert str(tmp_path / "file") in failing_line(command, capsys, "--output", tmp_path / "file")

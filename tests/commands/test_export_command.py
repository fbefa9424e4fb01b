"""pq export: the files of a run without its evaluation, or of a packed checkpoint; a user's mistake is one line."""

import sys

import pytest
import torch
from command_runs import failing_line

import pytorch_quantizer as pq
from pytorch_quantizer.commands import export as command
from pytorch_quantizer.commands import run
from pytorch_quantizer.data import load_dataset, make_loader

FEW = ("--calibration-samples", "64", "--device", "cpu")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder with the packed checkpoint and the ONNX file of one network."""
    folder = tmp_path_factory.mktemp("export")
    files = ["--save", str(folder / "m.safetensors"), "--export-onnx", str(folder / "m.onnx")]
    command.main(["--recipe", "w8a8", *FEW, *files])
    return folder


def predictions(path):
    images = torch.cat([batch for batch, _ in make_loader(load_dataset("digits"), 128)])
    return pq.OnnxRuntimeModel(path)(images)


def test_the_checkpoint_is_the_runs(written, tmp_path):
    run.main(["--recipe", "w8a8", *FEW, "--output", str(tmp_path), "--save", str(tmp_path / "m")])
    assert (tmp_path / "m").read_bytes() == (written / "m.safetensors").read_bytes()


def test_both_files_hold_the_same_model(written):
    images = torch.cat([batch for batch, _ in make_loader(load_dataset("digits"), 128)])
    simulated = pq.load(written / "m.safetensors")(images)
    assert (simulated.argmax(1) == predictions(written / "m.onnx").argmax(1)).float().mean() >= 0.995


@pytest.mark.parametrize("shape", [["--shape", "1,8,8"], []], ids=["shape", "data set"])
def test_a_packed_checkpoint_gives_the_same_onnx(written, tmp_path, capsys, shape):
    command.main(["--packed", str(written / "m.safetensors"), *shape, "--export-onnx", str(tmp_path / "m.onnx")])
    assert torch.equal(predictions(tmp_path / "m.onnx"), predictions(written / "m.onnx"))
    said = capsys.readouterr().out
    assert "m.onnx: " in said
    assert "convolution: 19 of 19 in integers" in said
    assert "ms for 32 images" in said


def test_the_onnx_files_form(written, tmp_path):
    packed = ["--packed", str(written / "m.safetensors"), "--shape", "1,8,8"]
    types = {}
    for name in ("int8", "uint8"):
        command.main([*packed, "--weight-type", name, "--export-onnx", str(tmp_path / name)])
        types[name] = set(pq.OnnxRuntimeModel(tmp_path / name).content["weights"].values())
    assert types == {"int8": {"int8"}, "uint8": {"uint8"}}


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ([], "nothing to write: give --save FILE, --export-onnx FILE or both"),
            (["--save", "m", "--shape", "1,8,8"], "--shape is of what --packed FILE reads"),
            (["--packed", "absent", "--export-onnx", "m"], "absent is not a file"),
            (["--packed", "absent", "--save", "m", "--clip", "mse", "--recipe", "w8a8"], "leave out --clip, --recipe"),
            (["--save", "m", "--recipe", "nope"], "nope"),
            (["--save", "m", "--data", "nowhere"], "nowhere is not a folder"),
            (["--save", "m", "--weight-type", "int9"], "weight_type must be one of auto"),
            (["--save", "m", "--limit", "3"], "--limit"),
            (["--recipe", "w8a4_paper", "--export-onnx", "m"], "set activation_allocation none"),
        ],
    )
    def test_is_named(self, capsys, tmp_path, monkeypatch, arguments, named):
        monkeypatch.chdir(tmp_path)
        assert named in failing_line(command, capsys, *arguments)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("shape", "named"),
        [
            ("1,8", "shape [N, 1, 8]"),
            ("3,8,8", "expected input"),
            ("a,8", "as 3,224,224, got 'a,8'"),
            ("1,0,8", "1,0,8"),
        ],
    )
    def test_shapes(self, written, capsys, tmp_path, shape, named):
        flags = ("--packed", written / "m.safetensors", "--shape", shape, "--export-onnx", tmp_path / "m.onnx")
        assert named in failing_line(command, capsys, *flags)

    def test_a_missing_package_is_noticed_before_the_work(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        monkeypatch.setattr(command, "quantize_network", lambda *_: pytest.fail("work was done"))
        assert "onnxruntime is missing" in failing_line(command, capsys, "--export-onnx", tmp_path / "m.onnx")

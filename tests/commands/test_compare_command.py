"""pq compare: writes what it promises and names the first difference; its flags are run_inference.py's."""

import contextlib
import io
import json

import pytest
from command_runs import failing_line

import pytorch_quantizer as pq
from pytorch_quantizer.commands import compare as command
from pytorch_quantizer.commands import run


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """(folder, what was printed) of the embedded job on a few images."""
    folder, printed = tmp_path_factory.mktemp("compare"), io.StringIO()
    few = ["--recipe", "w8a8", "--limit", "20", "--calibration-samples", "64", "--device", "cpu"]
    with contextlib.redirect_stdout(printed):
        command.main([*few, "--output", str(folder), "--save", str(folder / "model.safetensors")])
    return folder, printed.getvalue()


class TestTheEmbeddedJob:
    def test_the_file_holds_every_promised_field(self, job):
        record = json.loads((job[0] / "compare.json").read_text())
        assert record.keys() >= {"images", "predictions_agree", "top1", "first_difference", "tensors"}
        assert record.keys() >= {"dataset", "arch", "seed", "recipe", "calibration", "versions", "machine", "date"}
        assert (record["dataset"], record["arch"], record["images"], record["seed"]) == ("digits", "resnet20", 20, 0)
        assert record["recipe"]["name"] == "w8a8"
        assert record["calibration"] == {"samples": 64, "split": "train", "statistics_file": None}
        assert record["predictions_agree"].keys() == {"integer", "onnxruntime"}
        assert record["top1"].keys() == {"simulated", "integer", "onnxruntime"}

    def test_integers_agree(self, job):
        record = json.loads((job[0] / "compare.json").read_text())
        assert record["predictions_agree"]["integer"] == 1
        assert record["top1"]["integer"] == record["top1"]["simulated"] >= 0.9
        assert len(record["tensors"]) == 30
        for tensor in record["tensors"]:
            assert tensor["why"] in ("the same", "ties")
            assert tensor["alone"]["most"] <= 1

    def test_onnx_runtime_agrees_where_it_is_installed(self, job):
        pytest.importorskip("onnxruntime")
        record = json.loads((job[0] / "compare.json").read_text())
        assert record["left_out"] == {}
        assert record["predictions_agree"]["onnxruntime"] == 1
        assert all(tensor["onnxruntime"] is not None for tensor in record["tensors"])
        assert record["exported"]["label"] == "integer"
        assert record["versions"].keys() >= {"onnx", "onnxruntime"}
        layers = [row for row in record["exported"]["operators"] if row["kind"] in ("convolution", "linear")]
        assert len(layers) == 20
        assert all(row["integer"] for row in layers)

    def test_what_is_printed(self, job):
        folder, text = job
        assert "resnet20 on digits: recipe w8a8, 20 images" in text
        assert "each tensor in integers, from the simulation's codes of its inputs: " in text
        assert "integer reference against simulation: " in text
        assert f"wrote {folder / 'compare.json'}\n" in text

    def test_the_model_that_was_compared_is_written(self, job):
        assert pq.load(job[0] / "model.safetensors").recipe.name == "w8a8"


def test_the_flags_are_those_of_run():
    parsers = [each.parser() for each in (command, run)]
    mine, theirs = ({flag for action in parser._actions for flag in action.option_strings} for parser in parsers)
    assert mine == theirs


def test_how_many_images_is_said():
    text = command.parser().format_help()
    assert "spread evenly over the data set; null: all (default: 1000)" in " ".join(text.split())


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--deployable", "false", "--activation-granularity", "per_channel"], "deployable: true"),
            (["--deployable", "false", "--statistics", "online"], "statistics: offline"),
            (["--limit", "0"], "limit"),
            (["--recipe", "nope"], "nope"),
            (["--data", "nowhere"], "nowhere is not a folder"),
            (["--no-such-flag"], "no-such-flag"),
        ],
    )
    def test_is_named(self, capsys, tmp_path, monkeypatch, arguments, named):
        monkeypatch.chdir(tmp_path)
        few = [
            "--calibration-samples",
            "16",
            "--device",
            "cpu",
            *(["--limit", "4"] if "--limit" not in arguments else []),
        ]
        assert named in failing_line(command, capsys, *few, *arguments)
        assert not list(tmp_path.rglob("compare.json"))

    @pytest.mark.parametrize("flag", ["--output", "--save", "--export-onnx"])
    def test_an_output_that_cannot_be_written_is_noticed_before_the_work(self, capsys, tmp_path, monkeypatch, flag):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setattr(
            "pytorch_quantizer.experiments.comparison.quantize_job", lambda *_, **__: pytest.fail("work was done")
        )
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "file" if flag == "--output" else tmp_path / "file" / "model"
        assert str(tmp_path / "file") in failing_line(command, capsys, flag, path)

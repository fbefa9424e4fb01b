"""pq report: one page of folders, files and models; --report of the others; a mistake is one line and exit code 2."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from command_runs import failing_line

import pytorch_quantizer as pq
from pytorch_quantizer.commands import report as command
from pytorch_quantizer.commands import train
from pytorch_quantizer.commands.report import default_output
from pytorch_quantizer.commands.report_flag import take_report_flag
from pytorch_quantizer.data import load_dataset
from pytorch_quantizer.models import bundled_checkpoint, create_model

sys.path.insert(0, str(Path(__file__).parents[1] / "reports"))
from report_examples import training, write_run, write_sweep


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A packed checkpoint of the bundled network."""
    path = tmp_path_factory.mktemp("model") / "digits.safetensors"
    images = load_dataset("digits", split="train")
    network = create_model("resnet20", num_classes=10, in_channels=1, checkpoint=bundled_checkpoint("digits_resnet20"))
    batch = pq.quantize(network, "w8a4_aciq", [load_batch(images)], progress=False)
    pq.save(batch, path)
    return path


def load_batch(images):
    return torch.stack([images[i][0] for i in range(64)])


class TestFoldersAndFiles:
    def test_the_page_is_in_the_first_folder(self, tmp_path, capsys):
        run, sweep = write_run(tmp_path / "run"), write_sweep(tmp_path / "sweep")
        command.main([str(run), str(sweep)])
        page = (run / "report.html").read_text()
        assert "Classes that suffer" in page
        assert "accuracy against size and bits" in page
        assert capsys.readouterr().out.startswith(f"wrote {run / 'report.html'}: 1.")

    def test_or_where_it_is_asked_for(self, tmp_path):
        command.main([str(write_sweep(tmp_path)), "--output", str(tmp_path / "a" / "b.html"), "--title", "Mine"])
        assert "<title>Mine</title>" in (tmp_path / "a" / "b.html").read_text()

    def test_beside_a_file(self, tmp_path):
        assert default_output([tmp_path / "net.json"]) == tmp_path / "net_report.html"

    @pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra [figures]")
    def test_figures(self, tmp_path, capsys):
        command.main([str(write_sweep(tmp_path)), "--figures", str(tmp_path / "figures")])
        assert len(list((tmp_path / "figures").glob("*.svg"))) == 2
        assert capsys.readouterr().out.count(".png") == 2


class TestASavedModel:
    def test_is_measured_anew(self, model, tmp_path):
        flags = ["--limit", "20", "--calibration-samples", "32", "--device", "cpu"]
        command.main([str(model), "--output", str(tmp_path / "r.html"), *flags])
        page = (tmp_path / "r.html").read_text()
        for part in (
            "resnet20 on digits, recipe w8a4_aciq",
            "Values, ranges and grids",
            "Classes that suffer",
            "20 images",
        ):
            assert part in page

    def test_of_another_network_is_refused(self, model, tmp_path, capsys):
        said = failing_line(command, capsys, model, "--arch", "resnet32", "--output", tmp_path / "r.html")
        assert "resnet32" in said


class TestMistakes:
    @pytest.fixture(autouse=True)
    def _in_an_empty_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ([], "sources"),
            (["nowhere"], "nowhere isn't there"),
            (["."], "holds nothing to report"),
            (["nowhere.safetensors"], "nowhere.safetensors"),
            (["a", "b", "--live"], "--live shows one sweep, got 2"),
            (["nowhere/deep", "--live"], "nowhere/deep isn't there"),
            ([".", "--no-such-flag"], "no-such-flag"),
            ([".", "--port", "x"], "port"),
        ],
    )
    def test_is_named(self, capsys, arguments, named):
        assert named in failing_line(command, capsys, *arguments)

    def test_a_page_that_cannot_be_written_is_noticed_before_the_work(self, capsys, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setattr(command, "read_or_measure", lambda *_: pytest.fail("work was done"))
        assert str(tmp_path / "file") in failing_line(command, capsys, ".", "--output", tmp_path / "file" / "r.html")

    def test_matplotlib_that_is_missing_is_noticed_before_the_work(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        monkeypatch.setattr(command, "read_or_measure", lambda *_: pytest.fail("work was done"))
        assert "[figures]" in failing_line(command, capsys, ".", "--figures", "f")


class TestTheFlagOfTraining:
    def test_is_no_setting(self):
        assert take_report_flag(["--epochs", "3", "--report", "r.html"]) == (["--epochs", "3"], Path("r.html"))
        assert take_report_flag(["--report=r.html"])[1] == Path("r.html")
        assert take_report_flag(["--epochs", "3"]) == (["--epochs", "3"], None)

    def test_writes_the_curves(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        found = training() | {"best_epoch": 5, "written_epoch": 5, "seconds": 1.0}
        found["config"] |= {"output": str(tmp_path / "net.safetensors"), "dataset": "digits", "recipe": None}
        found["test"] |= {name: {"macro": 0.5} for name in ("precision", "recall", "f1")}
        (tmp_path / "net.json").write_text(json.dumps(found))
        monkeypatch.setattr(train, "train", lambda config: found)
        train.main(["--report", str(tmp_path / "r.html")])
        assert "Training of net" in (tmp_path / "r.html").read_text()

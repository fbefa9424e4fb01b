"""scripts/reproduce/: one command makes a table from data; it resumes, and says a user's mistake in one line."""

import csv
import json
import sys
from functools import partial

import numpy as np
import pytest
from script_runs import failing_line, load_script

from pytorch_quantizer import load
from pytorch_quantizer.experiments import reproduce_command, reproduce_measure, trained_cell
from pytorch_quantizer.experiments.reproduce import ONNX_RUNTIME, Row, Table, Timing
from pytorch_quantizer.experiments.reproduce_command import reproduce

SCRIPTS = ("resnet20_cifar10_bits", "resnet20_cifar10_int8", "resnet18_cifar10", "resnet18_mnist")
FEW = ("--limit", "20", "--calibration-samples", "32")
TINY = Table(
    name="tiny",
    title="Digits",
    dataset="digits",
    arch="resnet20",
    columns=("top1", "precision", "recall", "f1"),
    timings=(Timing("test set", batch=8), Timing("16 x 16", batch=1, images=1, size=16)),
    rows=(
        Row("float32", published={"top1": 0.9}),
        Row("int4", "w4a4_statistical"),
        Row("int8, not fused", "w8a8", fused=False),
    ),
)
WITH_ONNX = Table(
    name="onnx",
    title="Digits",
    dataset="digits",
    arch="resnet20",
    timings=(Timing("8 x 8", batch=1, images=1),),
    rows=(Row("float32", runtime=ONNX_RUNTIME), Row("int8", "w8a8", ONNX_RUNTIME)),
)


def start(table, folder, *arguments):
    reproduce(table, [*FEW, "--output", str(folder), *arguments])
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def lines_of(files, name):
    return list(csv.DictReader(files[f"reproduce_{name}.csv"].decode().splitlines()))


@pytest.fixture(scope="module", autouse=True)
def _few_passes():
    """Times are there; how good they are is latency's business."""
    with pytest.MonkeyPatch.context() as patch:
        few = partial(reproduce_measure.compare_latency, repeats=2, warmup=0)
        patch.setattr(reproduce_measure, "compare_latency", few)
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    return folder, start(TINY, folder)


@pytest.fixture
def computed(monkeypatch):
    """The names of the recipes that were computed, not kept, and what was timed."""
    done, real, timed = [], reproduce_measure.quantize, reproduce_measure.compare_latency

    def quantized(model, recipe, *args, **kwargs):
        done.append(recipe.name)
        return real(model, recipe, *args, **kwargs)

    def compared(models, *args, **kwargs):
        done.append("times")
        return timed(models, *args, **kwargs)

    monkeypatch.setattr(reproduce_measure, "quantize", quantized)
    monkeypatch.setattr(reproduce_measure, "compare_latency", compared)
    return done


class TestTheTable:
    def test_has_a_line_a_row(self, unbroken):
        lines = lines_of(unbroken[1], "tiny")
        assert [(line["row"], line["recipe"], line["execution"]) for line in lines] == [
            ("float32", "float32", "float32"),
            ("int4", "w4a4_statistical", "simulated"),
            ("int8, not fused", "w8a8", "simulated"),
        ]
        assert all(line["samples"] == "20" and float(line["top1"]) > 0.8 for line in lines)
        assert all(float(line["test_set_median_ms"]) > float(line["16x16_median_ms"]) > 0 for line in lines)
        assert {line["test_set_threads"] for line in lines} == {"1"}
        assert {line["16x16_batch_size"] for line in lines} == {"1"}

    def test_sizes_are_those_of_the_files(self, unbroken):
        folder, files = unbroken
        for line, stem in zip(lines_of(files, "tiny"), ("float32", "int4", "int8_not_fused"), strict=True):
            [size] = {path.stat().st_size for path in (folder / "models").glob(f"{stem}_8.safetensors")}
            assert int(line["checkpoint_bytes"]) == size
            assert line["onnx_bytes"] == ""

    def test_what_is_not_fused_has_its_batch_norms(self, unbroken):
        names = [
            {site.name for site in load(unbroken[0] / "models" / f"{stem}_8.safetensors").sites}
            for stem in ("int4", "int8_not_fused")
        ]
        assert ["bn1.weight" in sites for sites in names] == [False, True]

    def test_the_record_says_on_what(self, unbroken):
        record = json.loads(unbroken[1]["reproduce_tiny.json"])
        assert record.keys() >= {"versions", "machine", "date", "weights", "seed", "limit", "rows"}
        assert (record["calibration_samples"], record["split"], record["limit"]) == (32, "train", 20)

    def test_is_markdown_too(self, unbroken):
        text = unbroken[1]["reproduce_tiny.md"].decode()
        assert "| float32 | – | " in text
        assert "| 90.00 % |" in text


class TestInterrupted:
    def test_nothing_is_computed_again(self, unbroken, computed):
        folder, files = unbroken
        assert start(TINY, folder) == files
        assert computed == []

    def test_times_can_be_measured_again(self, unbroken, computed):
        folder, files = unbroken
        start(TINY, folder, "--time-again")
        assert computed == ["w4a4_statistical", "w8a8", "times", "times"]
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def test_other_images_are_another_table(self, computed, unbroken):
        folder, files = unbroken
        again = start(TINY, folder, "--limit", "10", "--accuracy-only")
        assert computed == ["w4a4_statistical", "w8a8"]
        assert lines_of(again, "tiny")[0]["samples"] == "10"
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def test_a_killed_run_ends_with_the_same_numbers(self, unbroken, tmp_path, monkeypatch):
        real, done = reproduce_measure.quantize, []

        def counted(model, recipe, *args, **kwargs):
            if done == ["w4a4_statistical"]:
                done.append("killed")
                raise KeyboardInterrupt
            done.append(recipe.name)
            return real(model, recipe, *args, **kwargs)

        monkeypatch.setattr(reproduce_measure, "quantize", counted)
        with pytest.raises(KeyboardInterrupt):
            start(TINY, tmp_path, "--accuracy-only")
        assert not (tmp_path / "reproduce_tiny.csv").exists()
        after = lines_of(start(TINY, tmp_path, "--accuracy-only"), "tiny")
        assert done == ["w4a4_statistical", "killed", "w8a8"]
        before = lines_of(unbroken[1], "tiny")
        assert after == [{name: line[name] for name in after[0]} for line in before]


class TestOnnxRuntime:
    @pytest.fixture(scope="class")
    @staticmethod
    def made(tmp_path_factory):
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        folder = tmp_path_factory.mktemp("onnx")
        return folder, start(WITH_ONNX, folder)

    def test_runs_in_integers_what_the_simulation_said(self, made):
        float32, int8 = lines_of(made[1], "onnx")
        assert (float32["execution"], int8["execution"]) == ("float32", "integer")
        assert float32["floats"] == ""
        assert "conv" not in int8["floats"]
        assert all(line["runtime"].startswith("ONNX Runtime ") for line in (float32, int8))
        assert (float32["agreement"], int8["agreement"]) == ("1.0", "1.0")
        assert (float32["choice"], int8["choice"] != "") == ("", True)

    def test_both_files_are_there(self, made):
        folder, files = made
        int8 = lines_of(files, "onnx")[1]
        assert int(int8["onnx_bytes"]) == (folder / "models" / "int8_8.onnx").stat().st_size
        assert int(int8["checkpoint_bytes"]) == (folder / "models" / "int8_8.safetensors").stat().st_size
        assert int(int8["checkpoint_bytes"]) < 0.3 * int(lines_of(files, "onnx")[0]["checkpoint_bytes"])

    def test_a_cpu_that_adds_otherwise_is_another_cell(self, made, monkeypatch):
        monkeypatch.setattr(reproduce_measure, "adds_exactly", lambda: None)
        monkeypatch.setattr(reproduce_measure.TableRun, "_rates", lambda *_: pytest.fail("computed again"))
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            start(WITH_ONNX, made[0])

    def test_the_times_are_the_runtimes(self, made):
        assert [line["8x8_threads"] for line in lines_of(made[1], "onnx")] == ["1", "1"]


class TestTrained:
    ROWS = (Row("float32"), Row("int4", "w4a4_statistical", epochs=1))
    TABLE = Table("trained", "Digits", "digits", "resnet20", ROWS, ())

    def test_a_row_is_trained_once_from_the_float_weights(self, tmp_path, monkeypatch):
        real, configs = trained_cell.train, []

        def counted(config, **kwargs):
            configs.append(config)
            return real(config, **kwargs)

        monkeypatch.setattr(trained_cell, "train", counted)
        float32, int4 = lines_of(start(self.TABLE, tmp_path), "trained")
        [config] = configs
        assert (config.epochs, config.checkpoint is not None) == (1, True)
        assert int4["execution"] == "simulated"
        assert float(int4["top1"]) > 0.5
        assert int(int4["checkpoint_bytes"]) == (tmp_path / "models" / "int4_8.safetensors").stat().st_size
        assert load(tmp_path / "models" / "int4_8.safetensors").recipe.weights == "int4"
        assert lines_of(start(self.TABLE, tmp_path), "trained") == [float32, int4]
        assert len(configs) == 1


class TestMistakes:
    @pytest.fixture(autouse=True)
    def _nothing_is_computed(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(reproduce_measure, "quantize", lambda *_, **__: pytest.fail("work was done"))
        monkeypatch.setattr(reproduce_command, "trained_weights", lambda *_: pytest.fail("a network was trained"))

    @pytest.mark.parametrize("name", SCRIPTS)
    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ([], "needs --data PATH"),
            (["--data", "nowhere"], "nowhere is not a folder"),
            (["--data", "."], "test images"),
            (["--data", "nowhere", "--threads", "0"], "--threads must be at least 1"),
            (["--data", "nowhere", "--limit", "few"], "few"),
            (["--no-such-flag"], "no-such-flag"),
        ],
    )
    def test_is_named(self, name, capsys, arguments, named):
        assert named in failing_line(load_script(f"reproduce/{name}"), capsys, *arguments)

    @pytest.fixture
    def cifar10(self, tmp_path):
        np.savez(tmp_path / "test.npz", images=np.zeros((5, 32, 32, 3), np.uint8), labels=np.arange(5))
        return tmp_path

    @pytest.mark.parametrize("name", SCRIPTS[:2])
    def test_published_weights_that_are_not_there(self, name, cifar10, capsys):
        said = failing_line(load_script(f"reproduce/{name}"), capsys, "--data", cifar10)
        assert "holds no resnet20.th" in said

    @pytest.mark.parametrize("name", SCRIPTS[:3])
    def test_a_checkpoint_that_is_not_there(self, name, cifar10, capsys):
        said = failing_line(
            load_script(f"reproduce/{name}"), capsys, "--data", cifar10, "--checkpoint", "missing.safetensors"
        )
        assert "missing.safetensors" in said

    def test_packages_that_are_not_installed(self, cifar10, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        said = failing_line(load_script("reproduce/resnet18_cifar10"), capsys, "--data", cifar10)
        assert "pip install" in said

    def test_an_output_that_cannot_be_written_is_noticed_before_the_work(self, cifar10, capsys):
        script = load_script("reproduce/resnet18_cifar10")
        assert "test.npz" in failing_line(script, capsys, "--data", cifar10, "--output", cifar10 / "test.npz")


@pytest.mark.parametrize("name", SCRIPTS[2:])
def test_a_network_that_is_not_there_is_trained_as_the_config_says(name, tmp_path, monkeypatch):
    """What would be trained is what the table is about: the network, the data set, the size of its images."""
    monkeypatch.chdir(tmp_path)
    script, asked = load_script(f"reproduce/{name}"), []

    def train(config):
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("pytorch_quantizer.experiments.reproduce_weights.train", train)
    monkeypatch.setattr("pytorch_quantizer.experiments.reproduce_weights.has_split", lambda *_: True)
    monkeypatch.setattr(reproduce_command, "load_dataset", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        script.main(["--data", str(tmp_path)])
    [config] = asked
    table = next(value for value in vars(script).values() if isinstance(value, Table))
    assert (config.arch, config.dataset, config.image_size) == (table.arch, table.dataset, table.image_size)
    assert config.data == tmp_path

"""pq run: the main job writes what it promises; a user's mistake is one line and exit code 2."""

import json
import re
import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from command_runs import failing_line
from PIL import Image
from safetensors.torch import load_file, save_file

import pq_command
from pytorch_quantizer import evaluate, load, quantize
from pytorch_quantizer.calibration import tuning_run
from pytorch_quantizer.calibration.tune import Tuned
from pytorch_quantizer.command_line import from_flags
from pytorch_quantizer.commands import compare
from pytorch_quantizer.commands import run as command
from pytorch_quantizer.data import load_dataset, make_loader
from pytorch_quantizer.experiments import comparison, inference
from pytorch_quantizer.experiments.inference_config import InferenceConfig, resolved
from pytorch_quantizer.experiments.model_files import ModelFiles
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel
from pytorch_quantizer.models import bundled_checkpoint, create_model
from pytorch_quantizer.quantization.idle_fields import idle_fields
from pytorch_quantizer.quantization.recipe import Recipe

ONNX = all(find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    files = ["--save", str(folder / "m.safetensors"), "--export-onnx", str(folder / "m.onnx")] if ONNX else []
    command.main(["--output", str(folder), "--calibration-samples", "256", "--device", "cpu", *files])
    return folder


class TestTheEmbeddedJob:
    def test_result_holds_every_promised_field(self, written):
        result = json.loads((written / "result.json").read_text())
        assert result.keys() >= {"dataset", "arch", "samples", "seed", "deployable", "recipe", "fp32", "quantized"}
        assert result.keys() >= {"versions", "machine"}
        assert result["checkpoint"] is None
        measures = {"top1", "top5", "precision", "recall", "f1", "latency_ms", "size_bytes"}
        assert result["fp32"].keys() >= measures
        assert result["quantized"].keys() >= measures | {"agreement", "execution"}
        assert (result["dataset"], result["arch"], result["samples"]) == ("digits", "resnet20", 540)
        assert result["quantized"]["execution"] == "simulated"
        assert (result["recipe"]["weights"], result["recipe"]["activations"]) == ("int8", "int4")

    def test_rates_are_fractions_and_quantizing_costs_little(self, written):
        result = json.loads((written / "result.json").read_text())
        for entry in (result["fp32"], result["quantized"]):
            assert all(0.9 <= entry[rate] <= 1 for rate in ("top1", "top5", "precision", "recall", "f1"))
        assert result["quantized"]["top1"] >= result["fp32"]["top1"] - 0.02
        assert result["quantized"]["agreement"] >= 0.97

    def test_sizes_are_those_of_files(self, written):
        result = json.loads((written / "result.json").read_text())
        float_file = bundled_checkpoint("digits_resnet20").stat().st_size
        assert result["fp32"]["size_bytes"] == pytest.approx(float_file, rel=0.01)  # its header has other metadata
        assert 0.25 < result["quantized"]["size_bytes"] / result["fp32"]["size_bytes"] < 0.28
        assert result["fp32"]["size_label"].startswith("file on disk: parameters and buffers")
        assert result["quantized"]["size_label"].startswith("file on disk: packed checkpoint")

    def test_latencies_say_how_they_came_about(self, written):
        result = json.loads((written / "result.json").read_text())
        for name, label in (("fp32", "float32"), ("quantized", "simulated")):
            latencies = result[name]["latency"]
            assert [entry["batch_size"] for entry in latencies] == [1, 32]
            for entry in latencies:
                assert (entry["label"], entry["threads"]) == (label, torch.get_num_threads())
                assert entry["runtime"].startswith("PyTorch ")
                assert 0 < entry["minimum_ms"] <= entry["p10_ms"] <= entry["median_ms"] <= entry["p90_ms"]
            assert result[name]["latency_ms"] == latencies[-1]["median_ms"]

    def test_layers_are_a_row_a_tensor(self, written):
        layers = pd.read_csv(written / "layers.csv")
        assert {"name", "bits", "low", "high", "clipped_fraction", "sqnr_db"} <= set(layers)
        assert layers["name"].is_unique
        weights = layers[layers["kind"] == "weight"]
        assert len(weights) == 20
        assert (weights["bits"] == 8).all()
        inner = layers[(layers["kind"] == "activation") & layers["sqnr_db"].notna() & (layers["name"] != "pool")]
        assert (inner["bits"] == 4).all()
        assert (inner["clipped_fraction"] > 0).any()
        assert inner["sqnr_db"].between(5, 40).all()

    def test_the_picture_needs_no_network(self, written):
        page = (written / "layers.html").read_text()
        assert "<script" in page
        assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)


@pytest.mark.skipif(not ONNX, reason="needs the extra [onnx]")
class TestModelFiles:
    def test_hold_the_model_that_was_evaluated(self, written):
        result = json.loads((written / "result.json").read_text())
        assert (written / "m.safetensors").stat().st_size == result["quantized"]["size_bytes"]
        loader = make_loader(load_dataset("digits"), 128)
        exported = OnnxRuntimeModel(written / "m.onnx", threads=1)
        found = evaluate(exported, loader, reference=load(written / "m.safetensors"), progress=False)
        assert found.reference.top1 == result["quantized"]["top1"]
        assert found.agreement >= 0.995

    def test_what_was_timed_of_them_is_in_the_result_too(self, written):
        exported = json.loads((written / "result.json").read_text())["exported"]
        assert exported["size_bytes"] == (written / "m.onnx").stat().st_size
        assert [entry["label"] for entry in exported["latency"]] == ["integer", "integer"]
        assert exported["latency"][0]["runtime"].startswith("ONNX Runtime ")

    def test_what_was_written_and_how_it_runs_is_told(self, tmp_path):
        images = torch.randn(3, 3, 8, 8)
        model = quantize(create_model("resnet20"), "w8a8", images, progress=False)
        lines = ModelFiles(save=tmp_path / "m", export_onnx=tmp_path / "n").write(model, images)
        size = (tmp_path / "m").stat().st_size
        assert lines[0] == f"{tmp_path / 'm'}: {size:,} bytes, packed checkpoint"
        assert lines[1].startswith(f"{tmp_path / 'n'}: ")
        assert "convolution: 19 of 19 in integers" in lines[2]
        assert "addition: 9 of 9 in integers" in lines[2]  # those with a padded shortcut too
        assert [re.sub("^.* ms for ", "", line).split(" (")[0] for line in lines[3:]] == ["1 image", "3 images"]
        assert all("integer, ONNX Runtime" in line for line in lines[3:])

    def test_what_runs_partly_in_float_is_told_as_such(self, tmp_path):
        model = quantize(create_model("resnet20"), "dynamic_w8", progress=False)
        written = ModelFiles(export_onnx=tmp_path / "n").write_measured(model, torch.randn(3, 3, 8, 8))
        assert ", partly integer\n" in written.lines[0]
        assert all("; partly integer, ONNX Runtime" in line for line in written.lines[2:])
        assert written.exported["execution"] == "partly integer"

    def test_a_recipe_that_onnx_cannot_hold_is_noticed_before_the_work(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(command, "infer", lambda *_: pytest.fail("work was done"))
        line = failing_line(command, capsys, "--recipe", "w8a4_paper", "--export-onnx", tmp_path / "m.onnx")
        assert "--export-onnx: activation_allocation bits gives channels" in line
        assert "set activation_allocation none" in line

    def test_none_are_written_unasked(self):
        assert ModelFiles().write(None, None) == []

    @pytest.mark.parametrize("flag", ["--save", "--export-onnx"])
    def test_a_path_that_cannot_be_written_is_noticed_before_the_work(self, flag, capsys, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setattr(command, "infer", lambda *_: pytest.fail("work was done"))
        assert str(tmp_path / "file" / "m") in failing_line(command, capsys, flag, tmp_path / "file" / "m")

    def test_a_missing_package_is_noticed_before_the_work(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        monkeypatch.setattr(command, "infer", lambda *_: pytest.fail("work was done"))
        assert "onnxruntime is missing" in failing_line(command, capsys, "--export-onnx", tmp_path / "m.onnx")


def recipe_of(*arguments):
    module = command
    return module.recipe_from(vars(module.parser().parse_args(list(arguments))))


class TestRecipeFlags:
    def test_the_name_says_what_was_changed(self):
        assert recipe_of().name == "w8a4_aciq"
        assert recipe_of("--recipe", "w8a8").name == "w8a8"
        assert recipe_of("--clip", "minmax").name == "w8a4_aciq_clip-minmax"
        assert (
            recipe_of("--weight-clip", "laplace", "--weights", "int6").name
            == "w8a4_aciq_weights-int6_weight-clip-laplace"
        )

    def test_what_the_recipe_says_anyway_changes_no_name(self):
        assert recipe_of("--clip", "laplace", "--weights", "int8", "--activations", "int4") == recipe_of()

    def test_a_file_without_a_name_is_called_as_the_file(self, tmp_path):
        (tmp_path / "mine.yaml").write_text("clip: laplace\n")
        assert recipe_of("--recipe", str(tmp_path / "mine.yaml"), "--clip", "minmax").name == "mine_clip-minmax"

    def test_a_switch_needs_no_value_and_takes_one(self):
        assert recipe_of("--wide-residual").wide_residual
        assert recipe_of("--wide-residual", "true", "--weight-narrow", "false").weight_narrow is False
        assert not recipe_of("--wide-residual", "false").wide_residual

    def test_what_only_the_recipe_sets_and_a_flag_makes_idle_is_left_out(self, tmp_path):
        qdrop = Recipe.load("w4a4_qdrop")
        off = ("--recipe", "w4a4_qdrop", "--tuning-epochs", "0")
        assert qdrop.tuning_mirror
        assert recipe_of(*off) == qdrop.replace(
            name="w4a4_qdrop_tuning-epochs-0",
            tuning_epochs=0,
            **{name: getattr(Recipe(), name) for name in ("tuning_rate", "tuning_blocks", "tuning_mirror")},
        )
        assert idle_fields(recipe_of(*off, "--tuning-rate", "0.3")) == {"tuning_epochs": ["tuning_rate"]}
        assert idle_fields(recipe_of(*off, "--tuning-rate", "0.005")) == {"tuning_epochs": ["tuning_rate"]}
        Recipe(tuning_rate=0.5).save(tmp_path / "idle.yaml")  # its own fault, whatever the flags
        idle = recipe_of("--recipe", str(tmp_path / "idle.yaml"), "--clip", "mse")
        assert idle_fields(idle) == {"tuning_epochs": ["tuning_rate"]}

    def test_a_seed_that_is_given_wins_also_0(self, tmp_path):
        Recipe(seed=5).save(tmp_path / "drawn.yaml")
        given = ("--recipe", str(tmp_path / "drawn.yaml"))
        assert [recipe_of(*given, *seed).seed for seed in ((), ("--seed", "0"), ("--seed", "3"))] == [5, 0, 3]

    def test_a_seed_that_is_not_given_draws_as_0_does(self):
        flags = vars(command.parser().parse_args([]))
        assert resolved(from_flags(InferenceConfig, flags)).seed == 0
        assert recipe_of().seed == 0

    def test_null_is_a_value(self, tmp_path):
        Recipe(residual="int4").save(tmp_path / "narrow.yaml")
        given = ("--recipe", str(tmp_path / "narrow.yaml"))
        assert recipe_of(*given).residual == "int4"
        assert recipe_of(*given, "--residual", "null").residual is None


def test_a_statistics_file_read_again_tells_of_its_own_images(tmp_path, capsys):
    few = ["--limit", "10", "--batch-size", "32", "--device", "cpu", "--statistics-file", str(tmp_path / "s.json")]
    found = []
    for samples in ("64", "32"):
        command.main([*few, "--calibration-samples", samples, "--output", str(tmp_path / samples)])
        found.append(json.loads((tmp_path / samples / "result.json").read_text())["calibration"])
    assert found[0] == {"samples": 64, "split": "train", "statistics_file": None}
    assert found[1] == {"samples": 64, "split": None, "statistics_file": str(tmp_path / "s.json")}
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ranges from")]
    assert said == [
        "ranges from 64 images of the train split, seed 0",
        f"ranges from 64 images, those of {tmp_path / 's.json'}: --seed and --calibration-samples choose none",
    ]


FEW = ("--limit", "10", "--calibration-samples", "32", "--batch-size", "32", "--device", "cpu")


def said_by(capsys, folder, *arguments):
    """The lines that a run of a few images prints, and its result.json."""
    command.main([*FEW, "--output", str(folder), *arguments])
    return capsys.readouterr().out.splitlines(), json.loads((folder / "result.json").read_text())


def test_the_headline_of_mixed_precision_says_what_came_out(tmp_path, capsys):
    asked = ["--weights", "int4", "--activations", "int4", "--mixed-precision", "weights"]
    lines, result = said_by(capsys, tmp_path, *asked, "--mixed-precision-size", "0.9")
    assert set(pd.read_csv(tmp_path / "layers.csv").query("kind == 'weight'")["bits"]) == {8}
    assert ": weights int8, activations int4, mixed_precision_size 0.9, clip laplace, deployable" in lines[0]
    assert (result["types"], result["budgets"]) == (
        {"weights": "int8", "activations": "int4"},
        {"mixed_precision_size": 0.9},
    )


def test_dynamic_ranges_need_no_images_and_the_layers_are_named(tmp_path, capsys):
    lines, _ = said_by(capsys, tmp_path, "--recipe", "dynamic_w4")
    assert "activations int8, linear and recurrent layers only, ranges from each batch, clip minmax" in lines[0]
    assert "ranges from each batch as it comes, none from calibration" in lines
    assert not [line for line in lines if "from 0 images" in line]


def test_a_run_that_needs_no_images_says_so(tmp_path, capsys):
    lines, _ = said_by(capsys, tmp_path, "--recipe", "w8a8", "--activations", "float32", "--deployable", "false")
    assert "no calibration images needed" in lines


def test_a_warning_is_one_line(tmp_path, capsys):
    pq_command.main(["run", *FEW, "--output", str(tmp_path), "--rounding-damping", "0.5"])
    said = [line for line in capsys.readouterr().err.splitlines() if "rounding_damping" in line]
    assert said == ["warning: rounding_damping 0.5: without effect, as the recipe doesn't set weight_rounding"]


@pytest.mark.parametrize("kept", [True, False])
def test_tuning_that_changed_nothing_is_told(tmp_path, capsys, monkeypatch, kept):
    monkeypatch.setattr(tuning_run, "tune", lambda *_, **__: Tuned(1.0, 0.5 if kept else 1.5, kept))
    pq_command.main(["run", *FEW, "--output", str(tmp_path), "--tuning-epochs", "1"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: tuning")]
    left = "warning: tuning was asked for and changed nothing in this network: nothing better was found; "
    assert said == ([] if kept else [f"{left}try a lower tuning_rate or more tuning_images, or set tuning_epochs 0"])


LEARNING_ALONE = ["--activations", "float32", "--deployable", "false", "--calibration-samples", "32"]
LEARNING_ALONE += ["--reconstruction", "layer", "--reconstruction-iterations", "1"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "ranges and what is learned from 32 images of the train split, seed 0"),
        (
            ["--statistics", "online", "--activations", "int8"],
            "ranges from each batch as it comes, all else from 32 images of the train split, seed 0",
        ),
    ],
    ids=["weights", "online"],
)
def test_images_that_only_learning_reads_are_told(tmp_path, capsys, more, told):
    lines, result = said_by(capsys, tmp_path, *LEARNING_ALONE, *more)
    assert told in lines
    assert result["calibration"]["samples"] == 32


def test_help_is_for_people():
    text = command.parser().format_help()
    assert "type:" not in text
    assert "null" not in text
    assert "images a batch (default: 128)" in text
    assert "of the calibration draw, default: 0, and of learning, default: the recipe's" in " ".join(text.split())


class TestMistakes:
    @pytest.fixture(autouse=True)
    def _in_an_empty_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--arch", "resnet21"], "resnet21"),
            (["--dataset", "cifra"], "cifra"),
            (["--clip", "laplac"], "laplac"),
            (["--weight-clip", "none"], "none"),
            (["--weights", "int0"], "int0"),
            (["--activations", "int17"], "int17"),
            (["--recipe", "nope"], "nope"),
            (["--limit", "0"], "limit"),
            (["--batch-size", "0"], "batch"),
            (["--calibration-samples", "0"], "calibration"),
            (["--device", "nonsense"], "nonsense"),
            (["--no-such-flag"], "no-such-flag"),
            (["--checkpoint", "missing.th"], "missing.th"),
            (["--bias", "float32"], "deployable"),
            (["--batch", "64"], "--batch"),
            (["--wide-residual", "maybe"], "--wide-residual must be true or false"),
            (["--seed", "9" * 23], "seed must be between 0 and 2^64 - 1"),
            (["--seed", "-1"], "seed must be between 0 and 2^64 - 1"),
            (["--dataset", "digits", "--data", "."], "--dataset imagenet, cifar10, mnist or folder"),
            (["--data", "nowhere"], "nowhere is not a folder"),
            (["--max-memory", "two"], "max_memory must be a number of bytes, as 512MiB or 2GB, got 'two'"),
            (["--max-memory", "1GiB"], "max_memory is for reconstruction"),
            (["--resume", "folder"], "resume is for reconstruction"),
            (["--resume", "", "--recipe", "w4a4_brecq"], "resume must be a folder, got ''"),
            (["--recipe", "w4a4_gptq"], "no recipe named 'w4a4_gptq': it is called w4a4_second_order"),
            (["--recipe", "w3a3_gptq"], "it is called w3a3_second_order"),
            (["--recipe", "w4a8_gptq"], "no recipe named 'w4a8_gptq' (did you mean"),
            (["--reconstruction", "blok"], "reconstruction must be one of none, layer, block, got 'blok'"),
        ],
    )
    def test_is_named(self, capsys, arguments, named):
        assert named in failing_line(command, capsys, *arguments)

    @pytest.mark.parametrize(("command", "experiment"), [(command, inference), (compare, comparison)])
    def test_images_to_evaluate_are_looked_at_before_the_work(self, capsys, monkeypatch, command, experiment):
        monkeypatch.setattr(experiment, "quantize_job", lambda *arguments: pytest.fail("quantized for nothing"))
        assert "limit" in failing_line(command, capsys, "--limit", "0")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
    def test_a_cuda_device_that_is_not_there(self, capsys):
        line = failing_line(command, capsys, "--device", "cuda")
        assert "cuda" in line
        assert "--device cpu" in line

    def test_a_folder_without_images(self, capsys, tmp_path):
        assert str(tmp_path) in failing_line(
            command, capsys, "--dataset", "imagenet", "--data", tmp_path, "--checkpoint", "x"
        )

    def test_a_checkpoint_of_another_architecture_names_keys(self, capsys):
        other = bundled_checkpoint("digits_resnet20")
        line = failing_line(command, capsys, "--arch", "resnet32", "--checkpoint", other)
        assert "layer1.3" in line

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_name_the_layer(self, capsys, tmp_path, value):
        state = load_file(bundled_checkpoint("digits_resnet20"))
        state["layer2.1.conv1.weight"][0, 0, 0, 0] = value
        save_file(state, tmp_path / "broken.safetensors")
        line = failing_line(command, capsys, "--checkpoint", tmp_path / "broken.safetensors")
        assert "layer2.1.conv1.weight" in line

    def test_an_output_that_cannot_be_written_is_noticed_before_the_work(self, capsys, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setattr(
            "pytorch_quantizer.experiments.inference.quantize_job", lambda *_, **__: pytest.fail("work was done")
        )
        assert str(tmp_path / "file") in failing_line(command, capsys, "--output", tmp_path / "file")


class TestCorruptImages:
    @pytest.fixture
    def folder(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
        for i, image in enumerate(pixels):
            path = tmp_path / "data" / f"class{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        good = (tmp_path / "data" / "class0" / "0.png").read_bytes()
        (tmp_path / "data" / "class1" / "cut.png").write_bytes(good[: len(good) // 2])
        state = {k: v for k, v in load_file(bundled_checkpoint("digits_resnet20")).items() if "linear" not in k}
        state["conv1.weight"] = state["conv1.weight"].repeat(1, 3, 1, 1)
        state |= {"linear.weight": torch.randn(2, 64), "linear.bias": torch.zeros(2)}
        save_file(state, tmp_path / "two_classes.safetensors")
        return tmp_path

    def flags(self, folder):
        paths = {"--data": "data", "--output": "out", "--checkpoint": "two_classes.safetensors"}
        given = [part for flag, name in paths.items() for part in (flag, folder / name)]
        return ["--dataset", "folder", "--arch", "resnet20", *given]

    def test_one_stops_the_run_and_is_named(self, capsys, folder):
        line = failing_line(command, capsys, *self.flags(folder))
        assert "cut.png" in line
        assert "--skip-corrupt" in line

    def test_what_data_holds_is_inferred_and_said(self, capsys, folder):
        (folder / "data" / "class1" / "cut.png").unlink()
        command.main([*map(str, self.flags(folder)[2:])])
        assert json.loads((folder / "out" / "result.json").read_text())["dataset"] == "folder"
        assert "--dataset folder" in capsys.readouterr().out

    def test_skipping_counts_and_reports_it(self, capsys, folder):
        command.main([*map(str, self.flags(folder)), "--skip-corrupt"])
        result = json.loads((folder / "out" / "result.json").read_text())
        assert result["samples"] == 12
        assert result["skipped_images"] == [str(folder / "data" / "class1" / "cut.png")]
        assert result["calibration"] == {"split": "test", "samples": 12, "statistics_file": None}
        assert "skipped" in capsys.readouterr().out

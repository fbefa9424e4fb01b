"""benchmarks/bench_integer.py: what is timed is the same network each time, and is held to the right bars."""

import json
import sys

import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import bars
import bench_integer
import integer_peers
from bars import Rule

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation import Latency

OURS = bench_integer.OURS
ENGINE = torch.backends.quantized.engine
KEYS = {"model", "batch", "implementation", "seconds", "label", "runtime", "threads", "p10_ms", "median_ms", "p90_ms"}


@pytest.fixture(scope="module")
def few():
    """One of each kind, so that it is quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_integer, "OURS", {"W8A8 uint8": bench_integer.OURS["W8A8 uint8"]})
        patch.setattr(bench_integer, "STATIC", {"uint8": bench_integer.STATIC["uint8"]})
        patch.setattr(bench_integer, "ENGINES", ("onednn",))
        yield


@pytest.fixture(scope="module")
def models(few, tmp_path_factory):
    torch.manual_seed(1)
    images = torch.randn(4, 3, 32, 32)
    return bench_integer.variants("resnet20", images, tmp_path_factory.mktemp("integer"), 1), images


def rules(**given):
    return bench_integer.rules(**{"vnni": True, "models": ["resnet18", "resnet50"], "batches": [1, 8]} | given)


def against(found, *names):
    return [(rule.where["model"], rule.implementation, rule.limit) for rule in found if rule.against in names]


class TestRules:
    NAMES = ("W8A8 int8", "W7A8 int8", "W8A4 int8", "W4A4 int8")

    def test_with_vnni_every_model_of_int8_has_its_network_s_bar(self):
        expected = [("resnet18", name, 0.55) for name in self.NAMES] + [("resnet50", name, 0.75) for name in self.NAMES]
        assert against(rules(), bench_integer.FLOAT) == expected

    def test_without_it_what_cannot_saturate(self):
        found = against(rules(vnni=False, models=["resnet18"]), bench_integer.FLOAT)
        assert found == [("resnet18", "W7A8 int8", 0.85), ("resnet18", "W4A4 int8", 0.85)]

    def test_against_float_at_batch_1(self):
        assert {rule.where["batch"] for rule in rules() if rule.against == bench_integer.FLOAT} == {1}

    @pytest.mark.parametrize("vnni", [True, False])
    def test_everywhere_against_quantize_static_of_the_same_types(self, vnni):
        found = [rule for rule in rules(vnni=vnni, models=["resnet18"]) if rule.against.startswith("quantize_static")]
        pairs = [("W8A8 int8", "int8"), ("W8A8 uint8", "uint8"), ("W7A8 int8", "int7")]
        assert [(r.where["batch"], r.implementation, r.against, r.limit) for r in found] == [
            (batch, ours, f"quantize_static {kind}", 1.03) for batch in (1, 8) for ours, kind in pairs
        ]

    def test_others_have_no_bar_against_float(self):
        assert not against(rules(models=["resnet34"]), bench_integer.FLOAT)

    def test_names_are_those_of_what_is_timed(self):
        known = {*bench_integer.OURS, *map(bench_integer.static, integer_peers.STATIC), bench_integer.FLOAT}
        assert all({rule.implementation, rule.against} <= known for rule in rules() + rules(vnni=False))

    def test_a_bar_names_whose_it_is(self):
        rows = [{"model": "m", "implementation": name, "seconds": 1.0} for name in ("W8A8 int8", "other")]
        (bar,) = bars.bars(rows, [Rule({"model": "m"}, "time", "other", 1, "W8A8 int8")])
        assert bar.name == "m, W8A8 int8"


class TestVariants:
    def test_compute_the_same(self, models):
        found, images = models
        with torch.inference_mode():
            expected = found[bench_integer.TORCH](images)
            for name, model in found.items():
                error = (model(images) - expected).norm() / expected.norm()
                assert error < (1e-4 if "float32" in name else 0.1), name

    def test_say_how_they_run(self, models):
        said = {name: (getattr(m, "execution", None), getattr(m, "runtime", "")) for name, m in models[0].items()}
        assert list(said) == [
            *("PyTorch float32", "ONNX Runtime float32", "W8A8 uint8", "quantize_static uint8", "torch.ao onednn")
        ]
        executions = [execution for execution, _ in said.values()]
        assert executions == [None, "float32", "integer", "integer", "integer"]
        assert said["torch.ao onednn"][1].endswith(", onednn")
        assert all("ONNX Runtime" in said[name][1] for name in list(said)[1:4])

    def test_run_in_integers_or_float_as_they_say(self, models):
        for name, kinds in (("W8A8 uint8", "QLinearConv"), ("quantize_static uint8", "QLinearConv")):
            ran = integer_peers.operators(models[0][name].path)
            assert (ran[kinds], ran.get("Conv", 0)) == (19, 0)
        assert integer_peers.operators(models[0][bench_integer.FLOAT].path)["Conv"] == 19

    def test_torchs_engine_is_left_as_it_was(self, models):
        assert torch.backends.quantized.engine == ENGINE

    @pytest.mark.parametrize("name", list(bench_integer.OURS))
    def test_bits_are_those_of_the_name(self, name, monkeypatch):
        monkeypatch.setattr(bench_integer, "OURS", OURS)
        recipe = bench_integer.recipe_of(name)
        weights, activations = recipe.weights.removeprefix("int"), recipe.activations.removeprefix("int")
        assert (recipe.overrides[0].layers, recipe.overrides[0].weights) == ("*", recipe.weights)
        assert name.split() == [f"W{weights}A{activations}", OURS[name][-1]]

    def test_weights_have_the_type_that_the_name_says(self, models):
        assert set(models[0]["W8A8 uint8"].content["weights"].values()) == {"uint8"}


class TestRows:
    LATENCY = Latency(4.0, 3.0, 9.0, 2.0, 8, 1, "integer", "Runtime 1", "cpu", 20)

    def test_of_a_latency(self):
        row = bench_integer.row_of("W8A8 int8", self.LATENCY, {"QGemm": 1})
        assert (row["batch"], row["implementation"], row["seconds"]) == (8, "W8A8 int8", 4e-3)
        assert row["operators"] == {"QGemm": 1}
        assert "operators" not in bench_integer.row_of("torch.ao onednn", self.LATENCY, None)

    @pytest.mark.parametrize(("vnni", "told"), [(True, 0), (False, 1)])
    def test_what_may_saturate_is_told(self, vnni, told, capsys):
        rows = [
            {"model": "m"} | bench_integer.row_of(name, self.LATENCY, None)
            for name in (bench_integer.FLOAT, "W8A8 int8", "W8A8 uint8")
        ]
        bench_integer.print_rows(rows, vnni=vnni)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert [line.count("may saturate on this CPU") for line in lines] == [0, told, 0]
        assert all("1.00 x" in line and "(3.00 to 9.00)" in line for line in lines)

    def test_images_of_another_size_are_refused(self, tmp_path):
        with pytest.raises(InputError, match="images of an ImageNet folder are 224 pixels wide, not 32"):
            bench_integer.calibration(tmp_path, 4, 32)


def test_main_writes_rows_with_where_they_come_from(few, monkeypatch, tmp_path, capsys):
    path = tmp_path / "integer.json"
    flags = "--models resnet20 --batches 1 3 --images 2 --side 32 --repeats 1 --json"
    monkeypatch.setattr(sys, "argv", ["bench_integer.py", *flags.split(), str(path)])
    monkeypatch.setattr(bench_integer, "LEAST_ROUNDS", 1)
    before = torch.get_num_threads()
    try:
        bench_integer.main()
    finally:
        torch.set_num_threads(before)
    rows = json.loads(path.read_text())
    names = ["PyTorch float32", "ONNX Runtime float32", "W8A8 uint8", "quantize_static uint8", "torch.ao onednn"]
    assert [(row["batch"], row["implementation"]) for row in rows] == [(n, name) for n in (1, 3) for name in names]
    assert all(row.keys() >= KEYS | {"versions", "machine", "date", "weights", "calibration"} for row in rows)
    assert rows[0]["machine"].keys() >= {"vnni", "threads"}
    assert rows[0]["versions"].keys() >= {"onnx", "onnxruntime"}
    assert (rows[0]["weights"], rows[0]["calibration"]) == ("random", "2 random images")
    assert "of 2 missed" in capsys.readouterr().out

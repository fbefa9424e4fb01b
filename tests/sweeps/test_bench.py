"""Measuring points: the figures of run_inference, each network loaded once, errors as rows."""

import pytest
import torch

from pytorch_quantizer.experiments.inference import run_inference
from pytorch_quantizer.sweeps import bench as module
from pytorch_quantizer.sweeps.bench import Bench
from pytorch_quantizer.sweeps.plan import parse_plan
from pytorch_quantizer.sweeps.results import COLUMNS

FEW = {"limit": 40, "calibration_samples": 64, "batch_size": 32, "device": "cpu"}


def planned(**plan):
    return parse_plan(plan, FEW)[1]


COARSE = {"name": "coarse", "weights": "int2", "activations": "int4", "first": "int2", "last": "int2"}


@pytest.mark.parametrize(("recipe", "weights"), [("w8a4_aciq", "int8"), (COARSE, "int2")], ids=["w8a4", "coarse"])
def test_figures_are_those_of_a_single_run(recipe, weights):
    [point] = planned(recipes=[recipe], seeds=[3])
    measured = Bench().measure(point)
    row = measured.row
    record = run_inference(point.config, point.recipe).record
    assert row["error"] == ""
    assert (row["dataset"], row["arch"], row["recipe"], row["seed"]) == ("digits", "resnet20", point.recipe.name, 3)
    assert (row["weights"], row["activations"], row["deployable"]) == (weights, "int4", True)
    for name in ("top1", "top5", "precision", "recall", "f1", "size_bytes"):
        assert row[name] == record["quantized"][name], name
        assert row[f"fp32_{name}"] == record["fp32"][name], name
    assert row["agreement"] == record["quantized"]["agreement"]
    assert row["agreement"] < 1 or weights == "int8"
    assert [row["top1_low"], row["top1_high"]] == record["quantized"]["top1_interval"]
    assert row["samples"] == record["samples"] == 40
    assert row["calibration_split"] == "train"
    assert row["seconds"] >= row["quantizing_seconds"] > 0
    assert row["threads"] == torch.get_num_threads()
    assert row.keys() | {"key"} == COLUMNS.keys()
    origin = measured.origin
    assert (origin["versions"], origin["machine"]) == (record["versions"], record["machine"])


def test_a_network_is_loaded_once_for_all_its_points(monkeypatch):
    loaded, real = [], module.load_model
    monkeypatch.setattr(module, "load_model", lambda config, images: loaded.append(config.arch) or real(config, images))
    bench = Bench()
    measured = [bench.measure(point) for point in planned(recipes=["w8a8", "w8a4"], seeds=[0, 1])]
    assert loaded == ["resnet20"]
    assert len({str(each.row["top1"]) + str(each.row["size_bytes"]) for each in measured}) > 1
    assert [each.loading_seconds > 0.01 for each in measured] == [True, False, False, False]


def test_another_network_is_loaded_anew():
    points = [parse_plan({"recipes": ["w8a8"]}, FEW | {"limit": limit})[1][0] for limit in (10, 20, 10)]
    bench = Bench()
    assert [bench.measure(point).row["samples"] for point in points] == [10, 20, 10]


def test_what_came_before_changes_nothing():
    first, second = planned(recipes=["w8a4_aciq", "w8a8"])
    alone, bench = Bench().measure(second).row, Bench()
    bench.measure(first)
    after = bench.measure(second).row
    measured = ("seconds", "quantizing_seconds")
    assert {name: alone[name] for name in alone if name not in measured} == {
        name: after[name] for name in after if name not in measured
    }


def test_an_error_is_a_row_and_a_traceback(monkeypatch):
    def failing(*arguments, **options):
        raise RuntimeError("of two\nlines")

    bench, [point] = Bench(), planned(recipes=["w8a8"])
    with monkeypatch.context() as patch:
        patch.setattr(module, "quantize", failing)
        measured = bench.measure(point)
    assert measured.row["error"] == "RuntimeError: of two lines"
    assert "top1" not in measured.row
    assert measured.row["recipe"] == "w8a8"
    assert "in failing" in measured.trace
    assert bench.measure(point).row["error"] == ""

"""The pure parts of benchmarks/: rows, bars and pictures; nothing here is a measurement."""

import json
import math
import sys
from types import SimpleNamespace

import bars
import bench_kernels
import bench_models
import kernel_picture
import methods
import pytest
import torch
import turns
from bars import Rule
from kernel_bars import rules
from kernel_cases import CALLS, CASES, PASSES, Case, activation

import pytorch_quantizer as pq
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.cells import settings
from pytorch_quantizer.models import create_model

KEYS = {"op", "implementation", "device", "dtype", "layout", "elements", "seconds", "bytes"}


@pytest.fixture
def quick(monkeypatch):
    """One repetition a timing."""
    monkeypatch.setattr(turns, "SHORTEST_S", 0.0)
    monkeypatch.setattr(turns, "repetitions_of", lambda run, device: 1)


@pytest.fixture(scope="module")
def cases():
    """All cases of one image, float32."""
    x = activation(1, torch.float32, "contiguous", "cpu")
    return [
        *(case for make in CASES.values() for case in make(x)),
        *(c for make in CALLS.values() for c in make(x[0, 0])),
    ]


def row(implementation, seconds, elements=10, size=40, **other):
    return {
        "op": "f",
        "implementation": implementation,
        "seconds": seconds,
        "elements": elements,
        "bytes": size,
    } | other


class TestBars:
    ROWS = (row("ours", 2.0), row("copy", 1.0, size=80))

    @pytest.mark.parametrize(
        ("measure", "measured"), [("time", 2.0), ("speed", 0.5), ("bandwidth", 0.25), ("extra", 1e6)]
    )
    def test_measures(self, measure, measured):
        (bar,) = bars.bars(self.ROWS, [Rule({"op": "f"}, measure, "copy", 1)])
        assert bar.measured == measured

    @pytest.mark.parametrize(
        ("measure", "limit", "met"),
        [("time", 2.0, True), ("time", 1.99, False), ("speed", 0.5, True), ("speed", 0.51, False)],
    )
    def test_a_limit_itself_is_met(self, measure, limit, met):
        (bar,) = bars.bars(self.ROWS, [Rule({"op": "f"}, measure, "copy", limit)])
        assert bar.met == met
        assert str(bar).startswith("ok" if met else "MISS")

    def test_nan_is_not_met(self):
        rows = [row("ours", math.nan), row("copy", 1.0)]
        assert not any(bar.met for bar in bars.bars(rows, [Rule({"op": "f"}, m, "copy", 1) for m in bars.MEASURES]))

    def test_what_was_not_measured_has_no_bar(self):
        for rule in (Rule({"op": "g"}, "time", "copy", 9), Rule({"op": "f"}, "time", "torch", 9)):
            assert bars.bars(self.ROWS, [rule]) == []
        assert bars.bars(self.ROWS[1:], [Rule({"op": "f"}, "time", "copy", 9)]) == []

    def test_rows_must_be_all_that_the_rule_says(self):
        rows = [row("ours", 1.0, dtype="float32"), row("copy", 1.0, dtype="float16")]
        assert bars.bars(rows, [Rule({"op": "f", "dtype": "float32"}, "time", "copy", 9)]) == []

    def sizes(self, **how):
        ratios = {10: 3.0, 20: 1.0, 30: 2.0, 40: 9.0}
        rows = [row("ours", ratio, size) for size, ratio in ratios.items()] + [row("copy", 1.0, n) for n in ratios]
        (bar,) = bars.bars(rows, [Rule({"op": "f"}, how.pop("measure", "time"), "copy", 1, **how)])
        return bar.at, bar.measured

    def test_the_largest_size_within_bounds_counts(self):
        assert self.sizes(elements=(0, 30)) == (30, 2.0)
        assert self.sizes() == (40, 9.0)

    def test_or_the_worst_of_every_size(self):
        assert self.sizes(elements=(10, 39), every_size=True) == (10, 3.0)
        assert self.sizes(elements=(11, 39), every_size=True) == (30, 2.0)
        assert self.sizes(elements=(11, 39), every_size=True, measure="speed") == (30, 0.5)

    def test_rows_without_a_size(self):
        rows = [{"model": "m", "batch": 8, "implementation": name, "seconds": 1.0} for name in ("ours", "copy")]
        (bar,) = bars.bars(rows, [Rule({"model": "m", "batch": 8}, "time", "copy", 1)])
        assert (bar.name, bar.at) == ("m, batch 8", None)


class TestKernelRules:
    def test_each_is_of_a_case_and_a_run_of_it(self, cases):
        """A misspelled name would be absent for ever."""
        known = {case.op: case.runs.keys() for case in cases}
        for rule in rules():
            op = rule.where["op"]
            assert {"ours", rule.against} <= known[op], rule

    def test_where_says_what_rows_have(self, cases):
        keys = cases[0].description().keys()
        assert all(rule.where.keys() <= keys for rule in rules())

    def test_each_is_of_a_type_that_its_case_has(self, cases):
        """Those of a float32 activation here: codes are uint8 then, and a rule of float32 codes would never apply."""
        known = {(case.op, case.description()["dtype"]) for case in cases}
        for rule in rules():
            assert rule.where["dtype"] in ("float16", "bfloat16") or (rule.where["op"], rule.where["dtype"]) in known


class TestCases:
    def test_rows(self, cases, quick):
        case = next(case for case in cases if case.op == "histogram")
        rows = bench_kernels.measure(case, 1)
        assert [row["implementation"] for row in rows] == list(case.runs)
        assert all(row.keys() == KEYS for row in rows)
        assert json.loads(json.dumps(rows)) == rows

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    def test_a_row_names_its_tensor(self, layout):
        x = activation(200_000, torch.float16, layout, "cpu")
        described = Case("f", x, 0, {}).description()
        assert described == {"op": "f", "device": "cpu", "dtype": "float16", "layout": layout, "elements": 196_608}

    def test_bytes(self):
        case = Case("f", torch.zeros(10), 50, {})
        names = ("ours", "torch", "copy", "add", "aminmax", "sum")
        assert [case.bytes_of(name) for name in names] == [50, 50, 80, 120, 40, 40]

    def test_implementations_compute_the_same(self, cases):
        """But for ties, which PyTorch's product with 1/s puts elsewhere."""
        for case in cases:
            if case.op.startswith(("tensor_statistics", "histogram", "growing_histogram", "fake_quantize stochastic")):
                continue
            outcomes = {name: run() for name, run in case.runs.items() if name not in PASSES}
            first = outcomes.pop("ours")
            for name, other in outcomes.items():
                assert agree(first, other) > 0.999, (case.op, name)

    def test_statistics_compute_the_same(self, cases):
        for case in (case for case in cases if case.op.startswith("tensor_statistics")):
            ours, expected = case.runs["ours"](), case.runs["expression"]()
            rows = [ours[i].float().reshape(-1) for i in (1, 2, 5, 3, 4)]
            for got, other in zip(rows, expected, strict=True):
                torch.testing.assert_close(got, other.reshape(-1), rtol=1e-4, atol=1e-4)

    def test_histograms_count_the_same(self, cases):
        runs = next(case for case in cases if case.op == "histogram").runs
        assert (runs["ours"]()[:-2] - runs["torch"]().long()).abs().sum() < 0.001 * runs["torch"]().sum()

    def test_a_peer_that_refuses_is_left_out_and_named(self, capsys):
        def refuses():
            raise RuntimeError("not implemented for 'Half'\nat length")

        runs = {"ours": dict, "torch": refuses, "torch learnable": dict}
        assert bench_kernels.runnable(Case("f", torch.zeros(1), 0, runs)).keys() == {"ours", "torch learnable"}
        assert capsys.readouterr().out == "f: torch left out: not implemented for 'Half'\n"

    def test_ours_may_not_refuse(self):
        def refuses():
            raise RuntimeError("no kernel")

        with pytest.raises(RuntimeError, match="no kernel"):
            bench_kernels.measure(Case("f", torch.zeros(1), 0, {"ours": refuses}), 1)

    def test_a_size_that_does_not_fit_is_named(self, monkeypatch, capsys):
        monkeypatch.setattr(bench_kernels, "free_memory", lambda device: 2**30)
        assert bench_kernels.fits(2**20, "cpu")
        assert not bench_kernels.fits(2**28, "cpu")
        assert capsys.readouterr().out == "left out: 268,435,456 elements need 10 GiB, 1 GiB are free\n"


def agree(a, b):
    """The share of equal elements; of tuples, of their first."""
    a, b = (outcome[0] if isinstance(outcome, tuple) else outcome for outcome in (a, b))
    return (a == b).float().mean().item()


class TestTurns:
    def test_implementations_take_turns(self, quick):
        order = []
        turns.medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, "cpu", 3)
        assert order == ["a", "b"] * 3

    def test_medians(self, quick, monkeypatch):
        clock = iter([3.0, 1.0, 2.0])
        monkeypatch.setattr(turns, "seconds", lambda *arguments: next(clock))
        assert turns.medians({"a": dict}, "cpu", 3) == {"a": 2.0}

    @pytest.mark.parametrize(("once", "expected"), [(1.0, 1), (1e-3, 5), (1e-9, 2000)])
    def test_what_is_quick_is_repeated(self, monkeypatch, once, expected):
        monkeypatch.setattr(turns, "seconds", lambda *arguments: once)
        assert turns.repetitions_of(dict, "cpu") == expected

    def test_a_timing_is_of_one_call(self, monkeypatch):
        clock = iter([10.0, 18.0])
        monkeypatch.setattr(turns.time, "perf_counter", lambda: next(clock))
        assert turns.seconds(dict, "cpu", 4) == 2.0


class TestMain:
    def test_writes_rows_with_where_they_come_from(self, quick, monkeypatch, tmp_path, capsys):
        path = tmp_path / "kernels.json"
        flags = "--ops histogram --elements 65536 --dtypes float32 --layouts contiguous --repeats 1 --json"
        monkeypatch.setattr(sys, "argv", ["bench_kernels.py", *flags.split(), str(path)])
        bench_kernels.main()
        rows = json.loads(path.read_text())
        assert all(row.keys() == KEYS | {"versions", "machine", "date", "repeats"} for row in rows)
        assert {row["op"] for row in rows} == {"histogram", "growing_histogram"}
        assert "of 2 missed" in capsys.readouterr().out


class TestPicture:
    ROWS = (
        row("ours", 1e-9, 20, 6, dtype="float32", layout="contiguous"),
        row("ours", 1e-9, 10, 4, dtype="float32", layout="contiguous"),
        *(row("copy", s, 10, 8, dtype="float32", layout="contiguous", op=f"op {s}") for s in (1e-9, 2e-9, 4e-9)),
        row("torch", 1e-9, 10, 4, dtype="float32", layout="contiguous"),
        row("ours", 1e-9, 10, 99, dtype="float16", layout="contiguous"),
        row("ours", 1e-9, 10, 99, dtype="float32", layout="channels_last"),
        row("ours", 1e-9, 10, 99, dtype="float32", layout="contiguous", op="f call, no_grad"),
    )

    def curves(self):
        return kernel_picture.curves(list(self.ROWS), "float32", "contiguous")

    def test_curves(self):
        found = self.curves()
        assert list(found) == ["copy_", "f"]
        assert found["copy_"] == [(10, pytest.approx(4.0))]
        assert found["f"] == [(10, pytest.approx(4.0)), (20, pytest.approx(6.0))]

    def test_page_needs_no_network(self):
        text = kernel_picture.page(self.curves(), "title")
        assert "<script src" not in text
        assert '"copy_"' in text

    def test_png(self, tmp_path):
        pytest.importorskip("matplotlib")
        kernel_picture.save_png(self.curves(), "title", tmp_path / "k.png")
        assert (tmp_path / "k.png").read_bytes().startswith(b"\x89PNG")


class TestModels:
    def test_names(self):
        assert bench_models.described("resnet20:4") == ("resnet20", 4, 32)
        assert bench_models.described("resnet50:8") == ("resnet50", 8, 224)
        assert bench_models.described("resnet50:8:64") == ("resnet50", 8, 64)

    @pytest.mark.parametrize("name", ["resnet20", "resnet20:0", "resnet20:x", "resnet20:1:2:3"])
    def test_wrong_names(self, name):
        with pytest.raises(InputError, match="must be ARCH:BATCH or ARCH:BATCH:SIDE"):
            bench_models.described(name)

    def test_rules_are_of_rows_that_are_made(self, quick):
        options = SimpleNamespace(device="cpu", recipe="w8a4_aciq", repeats=1)
        rows = bench_models.measure("resnet20:1:8", options)
        implementations = {row["implementation"] for row in rows}
        for rule in bench_models.RULES:
            assert rule.where.keys() <= rows[0].keys()
            assert {rule.against, rule.implementation} <= implementations

    def test_by_torch_simulates_the_same(self):
        torch.manual_seed(0)
        images = torch.randn(2, 3, 32, 32)
        simulated = pq.quantize(create_model("resnet20"), "w8a8", [images], progress=False)
        by_torch = bench_models.by_torch(simulated)
        assert not any(isinstance(m, pq.Quantizer) for m in by_torch.quantizers.children())
        with torch.no_grad():
            expected, got = simulated(images), by_torch(images)
        assert not torch.equal(expected, torch.zeros_like(expected))
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())

    def test_by_torch_has_no_other_types(self):
        recipe = pq.Recipe(activations="fp8_e4m3", deployable=False)
        simulated = pq.quantize(create_model("resnet20"), recipe, [torch.randn(1, 3, 8, 8)], progress=False)
        with pytest.raises(InputError, match="torch has no op for fp8_e4m3 activations"):
            bench_models.by_torch(simulated)


class TestMethods:
    def test_each_row_has_a_name_of_its_own_and_does_something_of_its_own(self):
        made = methods.rows()
        assert len({row.name for row in made}) == len(made)
        recipes = [settings(row.recipe(methods.Bits(8, 8))) for row in made]
        assert [row.name for row, recipe in zip(made, recipes, strict=True) if recipes.count(recipe) > 1] == []

    @pytest.mark.parametrize(
        ("name", "fields"),
        [
            ("mse + output_mse + activation correction, gain", {"activation_correction": "gain"}),
            ("minmax + weight correction, mean", {"weight_correction": "mean"}),
            ("minmax + weight correction, variance", {"weight_correction": "variance"}),
            (
                "per-channel activations, laplace + bit allocation + weight correction, as printed",
                {"weight_correction": "both", "weight_correction_form": "paper", "weight_allocation": "bits"},
            ),
            (
                "per-channel activations, laplace + mid-tread",
                {"activation_allocation": "midtread", "weight_allocation": "midtread", "clip": "laplace"},
            ),
            (
                "per-channel activations, gaussian + bit allocation",
                {"clip": "gaussian", "allocation_prior": "gaussian", "activation_allocation": "bits"},
            ),
        ],
    )
    def test_what_a_row_says(self, name, fields):
        [row] = [row for row in methods.rows() if row.name == name]
        for bits in row.columns:
            recipe = row.recipe(bits)
            assert {field: getattr(recipe, field) for field in fields} == fields

"""ONNX files beside what they were made from: the codes of the simulation and the integer reference, in integers."""

import importlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Untraceable, images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer import InputError
from pytorch_quantizer.export import onnx_types
from pytorch_quantizer.export.agreement import simulated_codes
from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.export.onnx_rewrite import export_form

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from pytorch_quantizer.export.onnx import OnnxExport, export_onnx  # noqa: E402
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel, OperatorReport, operator_report  # noqa: E402


def quantized(net, batch=None, *, weights="int8", activations="int8", **fields):
    recipe = pq.Recipe(weights=weights, activations=activations, **fields)
    return pq.quantize(net, recipe, images(8, 3, 8, 8) if batch is None else batch, progress=False)


def residual():
    def forward(net, x):
        shortcut = F.relu(net.a(x))
        return net.fc(F.relu(net.b(shortcut) + shortcut).mean((2, 3)))

    return network(forward, a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Conv2d(6, 6, 3, padding=1), fc=nn.Linear(6, 4))


def padded_shortcut():
    """Values that are negative, moved twice on codes, the second time beside zeros."""

    def forward(net, x):
        y = net.a(x)
        padded = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return net.fc((net.b(y) + padded).flatten(1))

    return network(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 8, 3, stride=2, padding=1), fc=nn.Linear(128, 3))


def concatenated():
    """One part through a ReLU, one through a pooling: the grid is that of the concatenation's own ReLU."""

    def forward(net, x):
        parts = [F.relu(net.a(x)), F.max_pool2d(F.relu(net.b(x)), 3, 1, 1)]
        return net.fc(net.c(torch.cat(parts, 1)).flatten(1))

    parts = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 1), "c": nn.Conv2d(8, 2, 1), "fc": nn.Linear(128, 3)}
    return network(forward, **parts)


def attention():
    def forward(net, x):
        scores = torch.matmul(net.q(x), net.k(x).transpose(1, 2))
        return net.o(torch.matmul(torch.softmax(scores, -1), net.v(x)))

    return network(forward, **{name: nn.Linear(8, 8) for name in "qkvo"})


def one_dimensional():
    layers = [nn.Conv1d(3, 8, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool1d(1)]
    return sequence(*layers, nn.Flatten(), nn.Linear(4, 3))


def separable():
    """Depthwise convolutions without biases, and ReLU6."""
    depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU6(), depthwise, nn.ReLU6(), nn.Conv2d(8, 4, 1, groups=2)]
    return sequence(*layers, nn.Flatten(), nn.Linear(256, 3))


def pooled_before_relu():
    layers = [nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(6, 4, 2), nn.ReLU()]
    return sequence(*layers, nn.Flatten(), nn.Linear(64, 3))


def reflected():
    layers = [nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Flatten()]
    return sequence(*layers, nn.Linear(384, 3))


def perceptron():
    layers = [nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 3)]
    return sequence(nn.Flatten(), *layers)


IN_INTEGERS = {
    "4-bit activations": (residual, {"activations": "int4"}),
    "4-bit weights": (residual, {"weights": "int4"}),
    "2-bit weights": (residual, {"weights": "int2", "activations": "int3"}),
    "signed activations": (residual, {"activation_symmetric": True, "activations": "int4"}),
    "weights of one scale": (residual, {"weight_granularity": "per_tensor"}),
    "affine weights": (residual, {"weight_symmetric": False}),
    "padded shortcut": (padded_shortcut, {"activations": "int4"}),
    "concatenation": (concatenated, {"activations": "int4"}),
    "pooled before its ReLU": (pooled_before_relu, {"activations": "int4"}),
    "ReLU6": (separable, {}),
    "ReLU6 and 3-bit activations": (separable, {"activations": "int3", "clip": "laplace"}),
    "equalized ReLU6": (separable, {"equalize": True}),
    "reflected padding": (reflected, {}),
    "perceptron": (perceptron, {}),
    "1-d": (one_dimensional, {}),
    "attention": (attention, {}),
}
SLOW = {"4-bit weights", "weights of one scale", "ReLU6", "equalized ReLU6", "perceptron", "2-bit weights"}
CASES = [pytest.param(case, marks=pytest.mark.slow if case in SLOW else []) for case in IN_INTEGERS]
SHAPES = {"1-d": (4, 3, 16), "attention": (4, 5, 8)}


@dataclass(frozen=True)
class Exported:
    """A model, images, what export_onnx returned, the file as a module, and which operators run."""

    model: pq.QuantizedModel
    x: torch.Tensor
    path: Path
    export: OnnxExport
    runtime: OnnxRuntimeModel
    report: OperatorReport


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A small residual network at 8 bits; nobody changes it."""
    model, x, path = quantized(residual()), images(8, 3, 8, 8), tmp_path_factory.mktemp("onnx") / "model.onnx"
    export = export_onnx(model, path, x[:1])
    return Exported(model, x, path, export, OnnxRuntimeModel(path), operator_report(path))


@pytest.fixture
def exported(tmp_path):
    """(model, file) → (what export_onnx returns, the file as a module, which operators run)."""

    def export(model, x, **options):
        path = tmp_path / "model.onnx"
        return export_onnx(model, path, x, **options), OnnxRuntimeModel(path), operator_report(path)

    return export


def same_codes(found, expected, *, ties=1e-3):
    """But for a small share of ties, which fall to the other side."""
    assert found.keys() == expected.keys()
    for name, codes in found.items():
        apart = (codes.long() - expected[name].long()).abs()
        assert apart.max() <= 1, name
        assert (apart > 0).sum() <= ties * apart.numel() + 1, name


def agrees(model, runtime, x, **tolerance):
    """With the simulation, and with the integer reference where that runs."""
    outputs, codes = simulated_codes(model, x)
    found = runtime.codes(x)
    same_codes(found, codes, **tolerance)
    _, trace = IntegerModel(model).trace(x)
    same_codes(found, {step.name: step.result.codes for step in trace.steps}, **tolerance)
    torch.testing.assert_close(runtime(x), outputs, rtol=1e-2, atol=1e-2)


class TestInIntegers:
    @pytest.mark.parametrize("case", CASES)
    def test_every_layer_and_addition_runs_on_the_simulations_codes(self, case, exported):
        make, fields = IN_INTEGERS[case]
        x = images(*SHAPES.get(case, (8, 3, 8, 8)))
        model = quantized(make(), x, **fields)
        export, runtime, report = exported(model, x)
        assert report.runs_in_integers
        assert report.table["integer"].all(), str(report)
        assert not export.simulated
        assert export.label == runtime.label == "integer"
        agrees(model, runtime, x)

    def test_eight_bits(self, plain):
        assert plain.report.runs_in_integers
        assert plain.export.label == plain.runtime.label == "integer"
        agrees(plain.model, plain.runtime, plain.x)

    def test_the_batch_is_free_in_one_file_that_the_checker_accepts(self, plain):
        onnx.checker.check_model(str(plain.path), full_check=True)
        for batch in (plain.x[:1], plain.x[:5]):
            torch.testing.assert_close(plain.runtime(batch), plain.model(batch), rtol=1e-4, atol=1e-4)

    def test_what_each_layer_became(self, plain):
        ran = dict(zip(plain.report.table["name"], plain.report.table["ran"], strict=True))
        assert ran == {
            **{"a": "QLinearConv", "b": "QLinearConv", "add": "QLinearAdd"},
            **{"mean": "QLinearGlobalAveragePool", "fc": "QGemm"},
        }

    def test_evaluate_takes_it(self, plain):
        labels = plain.model(plain.x).argmax(1)
        found = pq.evaluate(plain.runtime, [(plain.x, labels)], reference=plain.model, progress=False)
        assert found.agreement == 1

    def test_wide_residuals_have_codes_of_their_own(self, exported):
        def forward(net, x):
            first = F.relu(net.a(x))
            second = F.relu(net.b(first) + first)
            return net.fc(F.relu(net.c(second) + second).mean((2, 3)))

        parts = {name: nn.Conv2d(3, 3, 3, padding=1) for name in "abc"}
        model = quantized(network(forward, **parts, fc=nn.Linear(3, 4)), activations="int4", wide_residual=True)
        x = images(8, 3, 8, 8)
        _, runtime, report = exported(model, x)
        assert {"relu:wide", "relu_1", "relu_1:wide"} <= set(runtime.codes(x))
        agrees(model, runtime, x)
        assert report.runs_in_integers  # what has two grids is done for each
        assert list(report.table[report.table["kind"] == "addition"]["name"]) == ["add", "add@2", "add_1"]
        assert list(report.table[report.table["kind"] == "convolution"]["name"]) == ["a", "a@2", "b", "c"]

    @pytest.mark.parametrize("kind", ["linear", "transposed"])
    def test_other_layers_of_two_grids_are_done_for_each(self, kind, exported):
        def forward(net, x):
            first = F.relu(net.a(x))
            return net.fc((net.b(first) + first).flatten(1))

        a, b = (nn.Linear(6, 6) if kind == "linear" else nn.ConvTranspose1d(6, 6, 1) for _ in "ab")
        x = images(8, 6) if kind == "linear" else images(8, 6, 5)
        net = network(forward, a=a, b=b, fc=nn.Linear(x[0].numel(), 4))
        model = quantized(net, x, activations="int4", wide_residual=True)
        _, runtime, report = exported(model, x)
        agrees(model, runtime, x)
        assert {"a", "a@2"} <= set(report.table["name"])
        assert kind == "transposed" or report.runs_in_integers  # ONNX Runtime has no integer ConvTranspose

    def test_a_concatenation_saturates_where_its_parts_do_not(self, exported):
        model, x = quantized(concatenated(), activations="int4"), images(8, 3, 8, 8)
        quantizer = next(site.quantizer for site in model.sites if site.name == "cat")
        quantizer.scale = quantizer.scale / 4
        _, runtime, _ = exported(model, x)
        found, expected = runtime.codes(x)["cat"], simulated_codes(model, x)[1]["cat"]
        assert (expected[:, 4:] == 15).any()
        same_codes({"cat": found}, {"cat": expected})


# With eight ONNX Runtime's int8 kernels saturate on CPUs without VNNI: not what is asked here.
SEVEN_BITS = {"weights": "int7", "first": "int7", "last": "int7"}


class TestWeights:
    @pytest.mark.parametrize("kind", ["int8", "uint8"])
    def test_are_stored_as_asked(self, kind, exported, tmp_path):
        model, x = quantized(residual(), **SEVEN_BITS), images(8, 3, 8, 8)
        export, runtime, report = exported(model, x, weight_type=kind)
        assert export.weight_types == {"a": kind, "b": kind, "fc": kind}
        stored = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(tmp_path / "model.onnx").graph.initializer}
        codes = model.get_submodule("a").weight_quantizer.quantize(model.get_parameter("a.weight")).numpy()
        assert stored["a.weight.codes"].dtype == np.dtype(kind)
        assert np.array_equal(stored["a.weight.codes"].astype(int) - 128 * (kind == "uint8"), codes)
        assert stored["a.bias.codes"].dtype == np.int32
        assert report.runs_in_integers
        agrees(model, runtime, x)

    @pytest.mark.parametrize(("bits", "exact", "kind"), [(8, False, "uint8"), (7, False, "int8"), (8, True, "int8")])
    def test_are_exact_on_this_cpu_unless_asked(self, bits, exact, kind):
        model = quantized(residual(), weights=f"int{bits}", first=f"int{bits}", last=f"int{bits}")
        assert set(export_form(model, "auto", exact=exact).weights.values()) == {kind}

    def test_the_choice_is_told_with_its_reason(self):
        assert "VNNI" in onnx_types.why("auto", {"uint8"}, exact=False)
        assert "saturate" in onnx_types.why("int8", {"int8"}, exact=False)
        assert "saturate" not in onnx_types.why("int8", {"int8"}, exact=True)
        assert "7 bits" in onnx_types.why("auto", {"int8"}, exact=False)

    def test_of_codebooks_are_float_and_stay_what_they_are(self, exported):
        """ONNX Runtime would round them to int8 by itself where nothing stood between layer and QuantizeLinear."""
        model = quantized(residual(), weights="kmeans4", deployable=False)
        x = images(8, 3, 8, 8)
        export, runtime, report = exported(model, x)
        assert export.label == "dequantized-weights"
        assert "kmeans4" in export.floats["b"]
        assert report.floats == ["b"]
        same_codes(runtime.codes(x), simulated_codes(model, x)[1])

    def test_of_float_biases_run_in_float(self, exported):
        model = quantized(residual(), bias="float32", deployable=False)
        x = images(8, 3, 8, 8)
        export, runtime, report = exported(model, x)
        assert export.floats["a.bias"] == "the recipe asks for float32"
        assert report.floats == ["a", "b", "fc"]
        agrees(model, runtime, x)

    def test_of_four_bits_take_half_a_byte_in_storage(self, exported, tmp_path):
        layers = [nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 3)]
        model, x = quantized(sequence(*layers), **SEVEN_BITS | {"weights": "int4"}), images(8, 3, 8, 8)
        plain, _, _ = exported(model, x)
        export, runtime, _ = exported(model, x, storage=True)
        assert export.label == runtime.label == "storage"
        assert export.weight_types == {"body.0": "int8", "body.2": "int4", "body.5": "int8"}
        assert plain.size - export.size == pytest.approx(64 * 64 * 9 / 2, rel=0.05)
        assert export.size == (tmp_path / "model.onnx").stat().st_size
        agrees(model, runtime, x)


class TestInFloat:
    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"weights": "int16", "activations": "int16"}, "16 bits"),
            ({"weights": "int3", "activations": "int12"}, "12 bits"),
        ],
    )
    def test_wide_codes_are_simulated(self, fields, why, exported):
        model, x = quantized(residual(), **fields), images(8, 3, 8, 8)
        export, runtime, report = exported(model, x)
        assert export.label == "simulated"
        assert export.simulated["relu"] == why
        assert not report.table["integer"].any()
        agrees(model, runtime, x, ties=1e-2)  # of so many codes float32 tells fewer apart
        agrees(model, runtime, 10 * x, ties=1e-2)  # beyond the limits

    def test_a_range_a_channel_is_simulated(self, exported):
        model = quantized(residual(), activations="int4", activation_granularity="per_channel", deployable=False)
        x = images(8, 3, 8, 8)
        export, runtime, _ = exported(model, x)
        assert export.simulated["relu"] == "a range a channel"
        same_codes(runtime.codes(x), simulated_codes(model, x)[1])

    def test_operations_without_integer_kernels_are_listed(self, exported):
        def forward(net, x):
            left, right = F.relu(net.a(x)).chunk(2, 1)
            return net.c(F.conv_transpose2d(left - right, net.w))

        net = network(forward, a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(2, 2, 1), w=nn.Parameter(torch.randn(4, 2, 2, 2)))
        model, x = quantized(net), images(4, 3, 8, 8)
        export, runtime, report = exported(model, x)
        integer = dict(zip(report.table["name"], report.table["integer"], strict=True))
        assert integer == {"a": True, "sub": False, "conv_transpose2d": False, "c": False}
        assert export.floats["c"] == "network output"
        assert "sub" in str(report)
        assert "network output" in str(export)
        agrees(model, runtime, x)

    def test_a_layer_that_is_called_twice_keeps_its_float_bias(self, exported):
        model = quantized(network(lambda net, x: net.a(F.relu(net.a(x))), a=nn.Conv2d(3, 3, 1)))
        x = images(4, 3, 8, 8)
        _, runtime, report = exported(model, x)
        assert list(report.table["name"]) == ["a", "a@2"]
        agrees(model, runtime, x)


class TestRelus:
    def test_become_limits_of_the_codes(self, exported):
        """Of a grid that reaches below zero and beyond the ceiling."""
        model, x = _under_relu6(), images(8, 3, 8, 8)
        form = export_form(model, "auto", exact=True)
        assert [m.limits for m in form.graph.modules() if getattr(m, "site", None) == "body.1"] == [(5, 11)]
        _, runtime, _ = exported(model, x)
        found = runtime.codes(x)["body.1"]
        same_codes({"body.1": found}, {"body.1": simulated_codes(model, x)[1]["body.1"]})
        assert (int(found.min()), int(found.max())) == (5, 11)


def _under_relu6():
    model = quantized(sequence(nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.Conv2d(6, 2, 1)), activations="int4", first="int8")
    quantizer = next(site.quantizer for site in model.sites if site.name == "body.1")
    quantizer.scale, quantizer.zero_point = torch.tensor(1.0), torch.tensor(5, dtype=torch.int32)
    model.get_submodule("body.0").weight.data.mul_(20)
    return model


class TestTheFile:
    def test_says_what_it_is(self, plain):
        model = onnx.load(plain.path)
        told = json.loads(model.metadata_props[0].value)
        assert told["recipe"] == "custom"
        assert told["weight_type"] == plain.export.why
        assert told["sites"]["relu"] == {"tensor": "relu:codes", "shift": 0}
        assert model.opset_import[0].version == 21

    def test_holds_no_path_of_the_machine_that_wrote_it(self, plain):
        assert b".py" not in plain.path.read_bytes()

    def test_leaves_the_model_as_it_was(self):
        model, x = quantized(residual()), images(8, 3, 8, 8)
        before = model(x), str(model.graph), {name: type(m) for name, m in model.named_modules()}
        export_form(model, "auto", exact=True)
        assert torch.equal(model(x), before[0])
        assert (str(model.graph), {name: type(m) for name, m in model.named_modules()}) == before[1:]

    def test_a_model_in_training_mode_stays_in_it(self, tmp_path):
        net = sequence(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        model, x = quantized(net), images(4, 3, 8, 8)
        expected = model(x)
        export_onnx(model.train(), tmp_path / "m.onnx", x)
        assert all(module.training for module in model.modules())
        torch.testing.assert_close(OnnxRuntimeModel(tmp_path / "m.onnx")(x), expected, rtol=1e-3, atol=1e-3)

    def test_is_written_whole_or_not_at_all(self, tmp_path, monkeypatch):
        path = tmp_path / "model.onnx"
        path.write_text("old")

        def broken(*_):
            raise OSError("disk full")

        monkeypatch.setattr("pytorch_quantizer.export.onnx.write_atomically", broken)
        with pytest.raises(OSError, match="disk full"):
            export_onnx(quantized(residual()), path, images(2, 3, 8, 8))
        assert path.read_text() == "old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"rounding": "half_away", "deployable": False}, "half_even"),
            ({"activations": "fp8_e4m3", "deployable": False}, "int types"),
        ],
    )
    def test_quantizers_that_onnx_does_not_know(self, fields, words, tmp_path):
        with pytest.raises(InputError, match=words):
            export_onnx(quantized(residual(), **fields), tmp_path / "m.onnx", images(2, 3, 8, 8))

    def test_a_float_model(self, tmp_path):
        with pytest.raises(InputError, match="QuantizedModel"):
            export_onnx(residual(), tmp_path / "m.onnx", images(2, 3, 8, 8))

    def test_an_unknown_weight_type(self, tmp_path):
        with pytest.raises(InputError, match="weight_type must be one of auto, int8, uint8, got 'int4'"):
            export_onnx(quantized(residual()), tmp_path / "m.onnx", images(2, 3, 8, 8), weight_type="int4")

    def test_half_precision(self, tmp_path):
        with pytest.raises(InputError, match="float16"):
            export_onnx(quantized(residual()).half(), tmp_path / "m.onnx", images(2, 3, 8, 8))

    @pytest.mark.parametrize("example", [None, torch.zeros(0, 3, 8, 8)])
    def test_no_example(self, example, tmp_path):
        with pytest.raises(InputError, match="example images"):
            export_onnx(quantized(residual()), tmp_path / "m.onnx", example)

    def test_images_of_another_size(self, tmp_path, capfd):
        net = sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
        with pytest.raises(InputError, match=r"can't run on example images of shape \[N, 3, 9, 9\]"):
            export_onnx(quantized(net), tmp_path / "m.onnx", images(2, 3, 9, 9))
        assert not list(tmp_path.iterdir())
        assert not capfd.readouterr().err  # torch.export would log its traceback

    @pytest.mark.parametrize(
        ("others", "named"),
        [
            ([], r"body\.1 \(Untraceable\) .* as it stands: .* values out of its forward"),
            ([Untraceable()], r"body\.1 \(Untraceable\), body\.3 \(Untraceable\) .* as they stand: .* their forward"),
        ],
    )
    def test_modules_that_torch_onnx_cannot_enter_are_named_and_nothing_else_is_said(
        self, others, named, tmp_path, capfd
    ):
        model = quantized(sequence(nn.Conv2d(3, 3, 1), Untraceable(), nn.Conv2d(3, 3, 1), *others, nn.BatchNorm2d(3)))
        with pytest.raises(
            InputError, match=rf"torch\.onnx can't export this network: Could not .*; {named}"
        ) as caught:
            export_onnx(model, tmp_path / "m.onnx", images(2, 3, 8, 8))
        assert "\x1b" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())
        assert capfd.readouterr() == ("", "")

    def test_what_torch_logs_is_back_after_an_export(self, tmp_path, caplog):
        with pytest.raises(InputError):
            export_onnx(quantized(sequence(Untraceable(), nn.Conv2d(3, 3, 1))), tmp_path / "m", images(2, 3, 8, 8))
        logging.getLogger("elsewhere").warning("heard")
        assert "heard" in caplog.messages

    def test_a_file_that_is_none(self, tmp_path):
        path = tmp_path / "m.onnx"
        with pytest.raises(InputError, match="is not a file"):
            OnnxRuntimeModel(path)
        path.write_bytes(b"no ONNX")
        with pytest.raises(InputError, match="no ONNX file that export_onnx wrote"):
            OnnxRuntimeModel(path)

    def test_images_of_another_shape(self, plain):
        with pytest.raises(InputError, match=r"doesn't run on images \[2, 4, 8, 8\]"):
            plain.runtime(images(2, 4, 8, 8))

    def test_a_missing_package(self, tmp_path, monkeypatch):
        found = importlib.import_module

        def absent(name, *rest):
            if name == "onnx":
                raise ImportError(name)
            return found(name, *rest)

        monkeypatch.setattr("importlib.import_module", absent)
        with pytest.raises(InputError, match=r"onnx is missing.*pip install 'pytorch-quantizer\[onnx\]'"):
            export_onnx(quantized(residual()), tmp_path / "m.onnx", images(2, 3, 8, 8))

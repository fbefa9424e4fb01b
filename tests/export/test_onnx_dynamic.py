"""ONNX files of models whose tensors take their range from each batch: what the simulation gives, in integers."""

from functools import cache

import pytest
import torch
from networks import images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer import InputError, Recipe
from pytorch_quantizer.quantization.qtypes import IntQuantizer
from pytorch_quantizer.quantization.qtypes.online_quantizer import OnlineQuantizer

runtime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from pytorch_quantizer.export.onnx import export_onnx  # noqa: E402
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel, operator_report  # noqa: E402

EVERYTHING = Recipe.load("dynamic_w8_convolutions")
NOT_DEPLOYABLE = {"bias": "float32", "deployable": False}


def mlp():
    return sequence(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48, bias=False), nn.Tanh(), nn.Linear(48, 10))


def convolutions():
    first, second = nn.Conv2d(3, 8, 3, padding=(1, 2)), nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False)
    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return sequence(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.ReLU(), *last)


def residual():
    """A tensor that a layer and an addition read: the addition in float."""

    def forward(net, x):
        y = net.a(x).relu()
        return net.fc((y + net.b(y)).flatten(1))

    return network(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 3, padding="same"), fc=nn.Linear(256, 4))


def recurrent(kind, **options):
    """A layer in both directions, and one that begins with their state."""

    def forward(net, x):
        y, state = net.rnn(x)
        begin = tuple(part[:1] for part in state) if kind is nn.LSTM else state[:1]
        z, last = net.top(y, begin)
        return net.fc(z + (last[0] if kind is nn.LSTM else last).mean())

    rnn = kind(8, 16, bidirectional=True, **options)
    return network(forward, rnn=rnn, top=kind(32, 16, **options), fc=nn.Linear(16, 5))


def cell():
    def forward(net, x):
        state = None
        for step in range(3):
            state = net.cell(x[:, step], state)
        return net.fc(state[0])

    return network(forward, cell=nn.LSTMCell(8, 16), fc=nn.Linear(16, 4))


def one_and_three_dimensions():
    return sequence(nn.Conv3d(2, 4, 2, padding=1), nn.Flatten(2), nn.Conv1d(4, 6, 4, padding="same"))


NETWORKS = {
    "mlp": (mlp, (3, 7, 64)),
    "convolutions": (convolutions, (6, 3, 9, 9)),
    "one and three dimensions": (one_and_three_dimensions, (3, 2, 5, 5, 5)),
    "residual": (residual, (4, 3, 8, 8)),
    "LSTM": (lambda: recurrent(nn.LSTM, batch_first=True), (4, 6, 8)),
    "GRU, time first": (lambda: recurrent(nn.GRU, bias=False), (4, 6, 8)),
    "RNN": (lambda: recurrent(nn.RNN, batch_first=True, nonlinearity="relu"), (4, 6, 8)),
    "cell": (cell, (5, 3, 8)),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(the simulation, its export, a batch) of a network under dynamic_w8_convolutions, each made once."""

    @cache
    def make(name):
        net, shape = NETWORKS[name]
        x = images(*shape)
        model = pq.quantize(net(), EVERYTHING, x)
        return model, export_onnx(model, tmp_path_factory.mktemp("dynamic") / "m.onnx", x), x

    return make


def quantized(net, x, recipe=None, **fields):
    return pq.quantize(net, recipe or Recipe(**fields), x, progress=False)


@torch.no_grad()
def assert_same(model, path, *batches):
    """But for the noise of sums in float32, and what a tie does that it decides: a few outputs, by a step or so."""
    running = OnnxRuntimeModel(path, threads=1)
    for x in batches:
        expected = model(x)
        difference, most = (running(x) - expected).abs(), float(expected.abs().max())
        assert difference.max() <= 0.02 * most
        assert (difference > 1e-5 * most).double().mean() <= 0.005


class TestTheSameAsTheSimulation:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_at_any_batch(self, exported, name):
        model, export, x = exported(name)
        assert_same(model, export.path, x, x[:1], torch.cat([x, 2 * x, -x]))

    @pytest.mark.parametrize("name", NETWORKS)
    def test_every_layer_runs_in_integers(self, exported, name):
        _, export, _ = exported(name)
        report = operator_report(export.path)
        layers = report.table[report.table["kind"].isin(["linear", "convolution", "recurrent"])]
        assert layers["integer"].all(), report
        assert len(layers)
        assert (export.label, export.simulated) == ("integer", {})

    @pytest.mark.parametrize(
        ("name", "ran"),
        [
            ("mlp", {"DynamicQuantizeMatMul"}),
            ("convolutions", {"ConvInteger", "DynamicQuantizeMatMul"}),
            ("LSTM", {"DynamicQuantizeLSTM", "DynamicQuantizeMatMul"}),
            ("GRU, time first", {"MatMulIntegerToFloat", "Scan of DynamicQuantizeMatMul", "DynamicQuantizeMatMul"}),
        ],
    )
    def test_by_which_operators(self, exported, name, ran):
        table = operator_report(exported(name)[1].path).table
        assert set(table[table["integer"]]["ran"]) == ran

    @pytest.mark.parametrize("name", ["convolutions", "LSTM"])
    def test_with_unsigned_weights_which_are_exact_on_every_cpu(self, exported, name, tmp_path):
        model, _, x = exported(name)
        export = export_onnx(model, tmp_path / "m.onnx", x, weight_type="uint8")
        assert set(export.weight_types.values()) == {"uint8"}
        assert_same(model, export.path, x)

    def test_with_weights_of_other_grids(self, tmp_path):
        """Affine, four bits, and one grid for all of a weight."""
        x, net = images(6, 64), mlp()
        for fields in ({"weight_symmetric": False, "weights": "int4"}, {"weight_granularity": "per_tensor"}):
            model = quantized(net, x, EVERYTHING.replace(**fields))
            export = export_onnx(model, tmp_path / "m.onnx", x)
            assert export.label == "integer"
            assert_same(model, export.path, x, 3 * x)

    def test_words_that_an_embedding_reads(self, tmp_path):
        def forward(net, x):
            y, _ = net.rnn(net.embed(x))
            return net.fc(y[:, -1])

        net = network(forward, embed=nn.Embedding(50, 8), rnn=nn.GRU(8, 12, batch_first=True), fc=nn.Linear(12, 4))
        model, words = pq.quantize(net, "dynamic_w8"), torch.arange(28).reshape(4, 7)
        export = export_onnx(model, tmp_path / "m.onnx", words)
        assert operator_report(export.path).runs_in_integers
        assert_same(model, export.path, words, words[:1])

    def test_without_a_batch(self, tmp_path):
        x = images(7, 8)
        model = pq.quantize(nn.LSTM(8, 16), "dynamic_w8", x)
        export_onnx(model, tmp_path / "m.onnx", x)
        torch.testing.assert_close(OnnxRuntimeModel(tmp_path / "m.onnx", threads=1)(x), model(x)[0], rtol=0, atol=1e-6)

    def test_an_lstm_on_two_threads_has_ranges_of_half_a_batch(self, tmp_path):
        """ONNX Runtime's own deviation, as large as what quantization costs anyway, and no worse."""
        torch.manual_seed(0)
        layer, x = nn.LSTM(32, 64), images(20, 64, 32)
        model = pq.quantize(layer, "dynamic_w8", x)
        export_onnx(model, tmp_path / "m.onnx", x)
        with torch.no_grad():
            ours, expected = model(x)[0], layer(x)[0]
        theirs = OnnxRuntimeModel(tmp_path / "m.onnx", threads=2)(x)
        errors = [float((y - expected).square().mean().sqrt()) for y in (ours, theirs)]
        assert errors[1] == pytest.approx(errors[0], rel=0.05)

    def test_a_layer_called_often_is_stored_once(self, exported):
        _, export, _ = exported("cell")
        stored = [tensor for tensor in onnx.load(export.path).graph.initializer if tensor.dims == [16, 64]]
        assert len(stored) == 1
        assert export.weight_types.keys() == {"cell.ih", "cell.hh", "fc"}


class TestWhatIntegersDoNotRun:
    def test_layers_that_the_recipe_leaves_in_float(self, tmp_path):
        x = images(4, 3, 8, 8)
        model = pq.quantize(residual(), "dynamic_w8", x)
        export = export_onnx(model, tmp_path / "m.onnx", x)
        assert operator_report(export.path).floats == ["a", "b", "add"]
        assert "this one is convolution" in export.floats["a.weight"]
        assert_same(model, export.path, x)

    def test_layers_without_a_kernel_are_simulated_and_say_why(self, tmp_path):
        layers = {
            "ONNX has no transposed convolution of integers": nn.ConvTranspose2d(3, 4, 3),
            "no integer kernel pads by reflect and takes ranges of each batch": nn.Conv2d(
                4, 4, 3, padding=1, padding_mode="reflect"
            ),
            "ConvInteger takes one zero point for all channels: set weight_symmetric": nn.Conv2d(4, 4, 3),
            "a weight of 12 bits": nn.Conv2d(4, 2, 3),
        }
        twelve = pq.Override("body.3", weights="int12")
        recipe = EVERYTHING.replace(weight_symmetric=False, overrides=(twelve,), deployable=False)
        x = images(4, 3, 8, 8)
        model = quantized(sequence(*layers.values()), x, recipe)
        export = export_onnx(model, tmp_path / "m.onnx", x)
        assert (export.label, [*export.simulated.values()]) == ("simulated", [*layers])
        assert_same(model, export.path, x)

    def test_tensors_on_ranges_of_each_batch_that_all_operations_read(self, tmp_path):
        """statistics online: additions read them too, and what lies behind a pooling reads no codes any more."""

        def forward(net, x):
            y = net.a(x).relu()
            return net.fc(nn.functional.max_pool2d(y + net.b(y), 2).flatten(1))

        net, x = network(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), fc=nn.Linear(64, 4)), images()
        model = quantized(net, x, statistics="online", **NOT_DEPLOYABLE)
        export = export_onnx(model, tmp_path / "m.onnx", x)
        table = operator_report(export.path).table.set_index("name")
        assert table["integer"].to_dict() == {"a": True, "b": True, "add": False, "max_pool2d": False, "fc": False}
        assert (export.label, list(export.simulated)) == ("simulated", ["fc"])
        assert_same(model, export.path, x)

    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
    def test_recurrences_on_stored_weights(self, kind, tmp_path):
        net, x = recurrent(kind, batch_first=True), images(4, 6, 8)
        model = quantized(net, x, weights="int8", activations="float32", deployable=False)
        export = export_onnx(model, tmp_path / "m.onnx", x)
        assert export.label == "dequantized-weights"
        assert export.floats["top.hh_l0"] == "its state has no range: dequantized weights"
        assert operator_report(export.path).floats == [
            *("rnn.ih_l0", "rnn.hh_l0", "rnn.ih_l0_reverse", "rnn.hh_l0_reverse", "top.ih_l0", "top.hh_l0", "add", "fc")
        ]
        assert_same(model, export.path, x)

    def test_recurrences_in_float_between_layers_whose_ranges_are_known(self, tmp_path):
        x = images(4, 6, 8)
        model = quantized(network(lambda net, x: net.rnn(x)[0], rnn=nn.GRU(8, 16)), x)
        export = export_onnx(model, tmp_path / "m.onnx", x)
        table = operator_report(export.path).table.set_index("name")
        assert table["integer"].to_dict() == {"rnn.ih_l0": True, "rnn.hh_l0": False}
        assert_same(model, export.path, x)


class TestRefusals:
    @pytest.mark.parametrize(
        "fields",
        [
            {"clip": "laplace"},
            {"activations": "int4"},
            {"activation_symmetric": True},
            {"activation_granularity": "per_channel"},
            {"rounding": "half_away"},
        ],
        ids=str,
    )
    def test_ranges_that_onnx_does_not_choose(self, fields, tmp_path):
        x = images(6, 64)
        model = quantized(mlp(), x, EVERYTHING.replace(**fields, deployable=False))
        with pytest.raises(InputError, match="range that ONNX doesn't choose from each batch"):
            export_onnx(model, tmp_path / "m.onnx", x)

    def test_a_sigmoids_fixed_range(self, tmp_path):
        x = images(6, 64)
        net = sequence(nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 4))
        with pytest.raises(InputError, match=r"body\.1 is uint8 online with a range that ONNX doesn't choose"):
            export_onnx(quantized(net, x, statistics="online", **NOT_DEPLOYABLE), tmp_path / "m.onnx", x)

    def test_four_bits_for_storage(self, tmp_path):
        x = images(6, 64)
        with pytest.raises(InputError, match="storage is for models whose ranges are known"):
            export_onnx(pq.quantize(mlp(), "dynamic_w4", x), tmp_path / "m.onnx", x, storage=True)


def onnx_grid(x):
    """(codes, scale, zero point) of DynamicQuantizeLinear in ONNX Runtime."""
    node = onnx.helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    made = onnx.helper.make_tensor_value_info
    kinds = [("y", onnx.TensorProto.UINT8), ("s", onnx.TensorProto.FLOAT), ("z", onnx.TensorProto.UINT8)]
    given = [made("x", onnx.TensorProto.FLOAT, None)]
    graph = onnx.helper.make_graph([node], "grid", given, [made(name, kind, None) for name, kind in kinds])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(found.reshape(found.shape)) for found in session.run(None, {"x": x.numpy()})]


class TestTheGrid:
    """DynamicQuantizeLinear computes in float32 what DESIGN computes in float64."""

    def ours(self, x):
        quantizer = OnlineQuantizer(IntQuantizer(8, signed=False, symmetric=False))
        quantizer(x)
        return quantizer.quantize(x), quantizer.scale, quantizer.zero_point

    def test_codes_and_zero_points_are_the_same_scales_within_one_ulp(self):
        for seed in range(50):
            x = (seed + 1) * images(500, seed=seed) + seed % 7 - 3
            x = x.relu() if seed % 4 == 0 else x
            codes, scale, zero_point = onnx_grid(x)
            our_codes, our_scale, our_zero_point = self.ours(x)
            assert torch.equal(codes, our_codes)
            assert int(zero_point) == int(our_zero_point)
            assert abs(int(scale.view(torch.int32)) - int(our_scale.view(torch.int32))) <= 1

    def test_a_range_of_nothing(self):
        codes, scale, zero_point = onnx_grid(torch.zeros(3))
        assert (codes.tolist(), float(scale), int(zero_point)) == ([0, 0, 0], 1.0, 0)
        assert [part.tolist() for part in self.ours(torch.zeros(3))] == [[0, 0, 0], 1.0, 0]

    def test_centred_ranges_are_where_they_differ(self):
        """z lies on a tie: DESIGN settles it as 128, float32's noise there as 127."""
        x = torch.tensor([-1.0, 0.0, 1.0])
        codes, _, zero_point = onnx_grid(x)
        assert int(zero_point) in (127, 128)
        assert int(self.ours(x)[2]) == 128
        assert ((codes.int() - int(zero_point)) - (self.ours(x)[0].int() - 128)).abs().max() <= 1

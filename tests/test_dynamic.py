"""Dynamic quantization: weights stored, inputs of layers on the range of their own batch, everything else in float."""

import copy
import warnings

import pytest
import torch
import torch.ao.quantization as torch_ao
from networks import images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer import InputError, Override, Recipe
from pytorch_quantizer.evaluation.layers import layer_table
from pytorch_quantizer.evaluation.sensitivity import sensitivity
from pytorch_quantizer.evaluation.size import size_bytes
from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.graph.place import BETWEEN_LAYERS, NETWORK_OUTPUT, NO_STATE_RANGE

W8 = Recipe.load("dynamic_w8")
CONVOLUTION_LEFT = "statistics dynamic quantizes linear, recurrent layers, this one is convolution (dynamic_layers)"
EVERYTHING = Recipe.load("dynamic_w8_convolutions")


def mlp():
    return sequence(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))


def recurrent(kind):
    def forward(net, x):
        y, _ = net.rnn(x)
        return net.fc(y)

    torch.manual_seed(0)
    return network(forward, rnn=kind(32, 64, 2, bidirectional=True), fc=nn.Linear(128, 10))


def residual_net():
    return network(
        lambda net, x: net.fc((x + net.a(x)).relu().flatten(1)), a=nn.Conv2d(3, 3, 3, padding=1), fc=nn.Linear(192, 5)
    )


def on_its_own_range(x, bits=8):
    """x on ONNX's dynamic grid: [min(x, 0), max(x, 0)] in 2^b − 1 steps, float64 until the scale is rounded."""
    lo, hi = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    scale = torch.tensor((hi - lo) / (2**bits - 1), dtype=torch.float32)
    zero = round(-lo / scale.item())
    return ((x / scale).round().add(zero).clamp(0, 2**bits - 1) - zero) * scale


def on_a_grid_a_row(w):
    scale = w.abs().amax(1, keepdim=True).double().div(127).float()
    return (w / scale).round() * scale


def kinds(model):
    """By name, what each site is: its number type, or why it is float."""
    return {s.name: s.reason or (s.quantizer.describe() if s.quantizer else s.carrier) for s in model.sites}


class TestWhatIsQuantized:
    def test_linear_layers_and_what_they_read_themselves(self):
        found = kinds(pq.quantize(residual_net(), "dynamic_w8"))
        assert found == {
            "a.weight": CONVOLUTION_LEFT,
            "fc.weight": "int8",
            "x": BETWEEN_LAYERS,
            "a": BETWEEN_LAYERS,
            "add": BETWEEN_LAYERS,
            "relu": BETWEEN_LAYERS,
            "flatten": "uint8 online",
            "fc": NETWORK_OUTPUT,
            "a.bias": "the recipe asks for float32",
            "fc.bias": "the recipe asks for float32",
        }

    def test_an_addition_beside_a_layer_reads_floats(self):
        net, x = residual_net(), images()
        model = pq.quantize(net, EVERYTHING)
        a = model.get_submodule("a")
        expected = torch.conv2d(on_its_own_range(x), a.weight, net.a.bias, padding=1)
        read = (x + expected).relu().flatten(1)
        expected = nn.functional.linear(on_its_own_range(read), model.get_submodule("fc").weight, net.fc.bias)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)

    def test_two_layers_that_read_one_tensor_share_its_grid(self):
        net = network(lambda net, x: net.a(x) + net.b(x), a=nn.Linear(8, 4), b=nn.Linear(8, 4))
        [site] = [s for s in pq.quantize(net, W8).sites if s.is_activation and s.quantizer]
        assert (site.name, site.kind, site.consumers) == ("x", "input", ("a", "b"))

    def test_only_the_part_that_is_read_counts(self):
        net = network(lambda net, x: net.fc(x[:, -1]), fc=nn.Linear(8, 4))
        x = torch.cat([100 * images(4, 1, 8), images(4, 1, 8)], 1)
        expected = nn.functional.linear(on_its_own_range(x[:, -1]), on_a_grid_a_row(net.fc.weight), net.fc.bias)
        torch.testing.assert_close(pq.quantize(net, W8)(x), expected, rtol=1e-5, atol=1e-6)

    def test_a_sigmoids_range_is_the_batchs_too(self):
        net = network(lambda net, x: net.fc(torch.sigmoid(x)), fc=nn.Linear(8, 4))
        x = images(4, 8) / 100 - 4
        expected = nn.functional.linear(on_its_own_range(x.sigmoid()), on_a_grid_a_row(net.fc.weight), net.fc.bias)
        torch.testing.assert_close(pq.quantize(net, W8)(x), expected, rtol=1e-5, atol=1e-6)

    def test_each_batch_has_its_own_range(self):
        model, x = pq.quantize(mlp(), W8), images(4, 64)
        first = model(x)
        model(1000 * x)
        assert torch.equal(model(x), first)

    @pytest.mark.parametrize(
        ("layers", "expected"),
        [
            ("linear", {"fc"}),
            ("recurrent", {"rnn.ih_l0", "rnn.hh_l0"}),
            ("convolution", {"conv"}),
            ("convolution, linear", {"conv", "fc"}),
        ],
    )
    def test_kinds_of_layers_can_be_chosen(self, layers, expected):
        net = network(
            lambda net, x: net.fc(net.rnn(net.conv(x))[0]),
            conv=nn.Conv1d(6, 6, 3),
            rnn=nn.LSTM(3, 7),
            fc=nn.Linear(7, 2),
        )
        model = pq.quantize(net, W8.replace(dynamic_layers=layers))
        quantized = {s.name.removesuffix(".weight") for s in model.sites if s.kind == "weight" and s.quantizer}
        assert quantized == expected
        assert {r for s in model.sites if s.is_activation and s.quantizer for r in s.consumers} == {
            name for name in expected if "hh" not in name
        }

    def test_overrides_choose_too(self):
        recipe = W8.replace(overrides=(Override("body.0", weights="float32", activations="float32"),), deployable=False)
        found = kinds(pq.quantize(mlp(), recipe))
        assert found["body.0.weight"] == found["x"] == "the recipe asks for float32"
        assert found["body.2.weight"] == "int8"

    def test_an_override_of_a_layer_that_stays_in_float(self):
        with pytest.raises(InputError, match="override 'a' matches no layer; layers are fc"):
            pq.quantize(residual_net(), W8.replace(overrides=(Override("a", weights="int4"),)))

    def test_four_bits_but_for_the_first_and_the_last_layer(self):
        model = pq.quantize(mlp(), "dynamic_w4")
        weights = [s.quantizer.describe() for s in model.sites if s.kind == "weight"]
        assert weights == ["int8", "int4", "int8"]

    def test_a_recurrent_layer_is_first_or_last_as_a_whole(self):
        model = pq.quantize(nn.GRU(8, 8, 3), "dynamic_w4")
        weights = {s.name.removesuffix(".weight"): s.quantizer.bits for s in model.sites if s.kind == "weight"}
        assert weights == {"ih_l0": 8, "hh_l0": 8, "ih_l1": 4, "hh_l1": 4, "ih_l2": 8, "hh_l2": 8}


CONVOLUTIONS = {
    "Conv1d": (nn.Conv1d(4, 6, 3, padding=1, groups=2), (5, 4, 9)),
    "Conv2d": (nn.Conv2d(4, 6, 3, stride=2, bias=False), (5, 4, 9, 9)),
    "Conv3d": (nn.Conv3d(4, 6, 3, dilation=2, padding=2), (2, 4, 6, 6, 6)),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), (5, 4, 9)),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3, groups=2, output_padding=1, stride=2), (5, 4, 9, 9)),
    "ConvTranspose3d": (nn.ConvTranspose3d(4, 6, 2), (2, 4, 5, 5, 5)),
}


class TestConvolutions:
    @pytest.mark.parametrize("kind", CONVOLUTIONS)
    def test_read_their_input_on_its_own_range(self, kind):
        layer, shape = CONVOLUTIONS[kind]
        model, x = pq.quantize(sequence(copy.deepcopy(layer)), EVERYTHING), images(*shape)
        quantized = model.get_submodule("body.0")
        assert quantized.weight_quantizer.qparams.axis == int("Transpose" in kind)
        torch.testing.assert_close(model(x), quantized(on_its_own_range(x)), rtol=1e-5, atol=1e-6)
        assert not torch.equal(model(x), quantized(x))


class TestRecurrentLayers:
    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
    def test_in_float_they_are_torchs(self, kind):
        net, x = recurrent(kind), images(9, 5, 32)
        recipe = Recipe(weights="float32", activations="float32", bias="float32", deployable=False)
        torch.testing.assert_close(pq.quantize(net, recipe)(x), net(x), rtol=1e-5, atol=1e-6)

    def test_an_lstm_step_by_step(self):
        layer, x = nn.LSTM(8, 16), images(6, 4, 8)
        model = pq.quantize(layer, W8)
        w_ih, w_hh = on_a_grid_a_row(layer.weight_ih_l0), on_a_grid_a_row(layer.weight_hh_l0)
        gates, h, c, outputs = (
            on_its_own_range(x) @ w_ih.T + layer.bias_ih_l0,
            torch.zeros(4, 16),
            torch.zeros(4, 16),
            [],
        )
        for step in gates:
            read = on_its_own_range(h) if h.any() else h
            i, f, g, o = (step + read @ w_hh.T + layer.bias_hh_l0).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        y, (h_n, c_n) = model(x)
        torch.testing.assert_close(y, torch.stack(outputs), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close((h_n[0], c_n[0]), (h, c), rtol=1e-4, atol=1e-5)

    def test_sites(self):
        net = network(lambda net, x: net.rnn(x)[0], rnn=nn.GRU(8, 8, batch_first=True))
        model = pq.quantize(net, W8)
        model(images(4, 3, 8))
        found = {s.name: (s.kind, s.quantizer.describe()) for s in model.sites if s.quantizer}
        assert found == {
            "rnn.ih_l0.weight": ("weight", "int8"),
            "rnn.hh_l0.weight": ("weight", "int8"),
            "x": ("input", "uint8 online"),
            "rnn.hh_l0:state": ("state", "uint8 online"),
        }
        assert kinds(model)["rnn.hh_l0.bias"] == "added to the gates, which are computed in float"
        assert "rnn.hh_l0:state" in model.summary()

    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
    def test_weights_alone(self, kind):
        net, x = recurrent(kind), images(9, 5, 32)
        model = pq.quantize(net, Recipe(weights="int8", activations="float32", deployable=False))
        stored = copy.deepcopy(net)
        for name, weight in stored.rnn.named_parameters():
            if name.startswith("weight"):
                weight.data = on_a_grid_a_row(weight.data)
        stored.fc.weight.data = on_a_grid_a_row(stored.fc.weight.data)
        torch.testing.assert_close(model(x), stored(x), rtol=1e-5, atol=1e-6)

    def test_ranges_from_calibration_leave_the_recurrence_in_float_and_say_why(self):
        model = pq.quantize(recurrent(nn.LSTM), "w8a8", images(9, 5, 32), progress=False)
        found = kinds(model)
        assert found["rnn.hh_l0.weight"] == found["rnn.hh_l0:state"] == NO_STATE_RANGE
        assert found["rnn.ih_l0.weight"] == "int8"
        assert found["rnn.ih_l0"] == "read only by rnn.hh_l0 (Recurrence), computed in float"

    def test_packed_sequences_are_refused(self):
        packed = nn.utils.rnn.pack_padded_sequence(images(4, 2, 8), torch.tensor([4, 2]))
        with pytest.raises(InputError, match="PackedSequence has no one range; quantized layers read tensors, padded"):
            pq.quantize(nn.LSTM(8, 8), W8)(packed)

    def test_cells_read_their_state_as_any_tensor(self):
        def forward(net, x):
            h = None
            for step in range(4):
                h = net.cell(x[:, step], h)
            return h

        net = network(forward, cell=nn.GRUCell(8, 8))
        model = pq.quantize(net, W8)
        assert {s.consumers[0] for s in model.sites if s.is_activation and s.quantizer} == {
            *("cell.ih", "cell.ih_1", "cell.ih_2", "cell.ih_3"),
            *("cell.hh", "cell.hh_1", "cell.hh_2", "cell.hh_3"),
        }
        difference = (model(images(5, 4, 8)) - net(images(5, 4, 8))).abs().max()
        assert 0 < difference < 0.02


def packed(layer):
    """Codes of a layer as PyTorch's own integer kernels take them."""
    quantizer = layer.weight_quantizer
    scale, zero_point = quantizer.scale.double(), quantizer.zero_point.long()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these types are announced for removal
        codes = torch._make_per_channel_quantized_tensor(quantizer.quantize(layer.weight), scale, zero_point, 0)
    return torch.ops.quantized.linear_prepack(codes, layer.bias)


def torch_dynamic(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_ao.quantize_dynamic(net, {nn.Linear, nn.LSTM, nn.GRU})


def error(got, expected):
    """Root mean square, as a share of what is expected."""
    return ((got - expected).square().mean() / expected.square().mean()).sqrt().item()


class TestAgainstPyTorchsOwn:
    """The same scheme as torch.ao's dynamic kernels, which with reduce_range use 7 bits of a tensor where this has 8.

    Weights of 7 bits, whose products those kernels sum up without saturating on any CPU.
    """

    SEVEN = W8.replace(weights="int7", overrides=(Override("*", weights="int7"),))

    @pytest.fixture(autouse=True)
    def _engine(self):
        before, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"
        yield
        torch.backends.quantized.engine = before

    @torch.no_grad()
    def test_a_linear_layer_is_the_same(self):
        model, x = pq.quantize(sequence(nn.Linear(64, 32)), self.SEVEN), images(16, 64)
        theirs = torch.ops.quantized.linear_dynamic(x, packed(model.get_submodule("body.0")), reduce_range=False)
        torch.testing.assert_close(model(x), theirs, rtol=1e-5, atol=1e-6)

    @torch.no_grad()
    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
    def test_a_recurrent_layer_is_the_same(self, kind):
        """But for ties, which another rounding of tanh may decide otherwise, and which later steps pass on."""
        torch.manual_seed(0)
        layer, x, zeros = kind(32, 64, 2, bidirectional=True), images(20, 8, 32), torch.zeros(4, 8, 64)
        model = pq.quantize(layer, self.SEVEN)
        names = [f"l{k}{end}" for k in (0, 1) for end in ("", "_reverse")]
        layers = [[model.get_submodule(f"{part}_{name}") for part in ("ih", "hh")] for name in names]
        params = [
            torch.ops.quantized.make_quantized_cell_params_dynamic(packed(ih), packed(hh), ih.bias, hh.bias, False)
            for ih, hh in layers
        ]
        given = (params, True, 2, 0.0, False, True, False)
        if kind is nn.LSTM:
            theirs = torch.quantized_lstm(x, (zeros, zeros), *given, dtype=torch.qint8, use_dynamic=True)[0]
        else:
            theirs = torch.quantized_gru(x, zeros, *given)[0]
        difference = (model(x)[0] - theirs).abs()
        assert difference.max() < 1e-3
        assert difference.median() < 1e-6

    @torch.no_grad()
    @pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
    @pytest.mark.parametrize("kind", [None, nn.LSTM, nn.GRU], ids=["mlp", "LSTM", "GRU"])
    def test_as_near_to_float_as_quantize_dynamic(self, kind, granularity):
        """Over ten batches: of one, the few weights' noise decides."""
        net = mlp() if kind is None else recurrent(kind)
        ours, theirs = pq.quantize(net, W8.replace(weight_granularity=granularity)), torch_dynamic(net)
        errors = []
        for seed in range(10):
            x = images(32, 64, seed=seed) if kind is None else images(20, 8, 32, seed=seed)
            errors.append([error(model(x), net(x)) for model in (ours, theirs)])
        mean = torch.tensor(errors).mean(0)

        assert 0 < mean[0] <= mean[1]


def every_kind(net, x):
    x = net.embed(x)
    y, (h, _) = net.lstm(x)
    y, _ = net.gru(y)
    z = net.cell(y[:, 0])
    y = net.conv(y.transpose(1, 2)).relu().transpose(1, 2)
    return net.fc(y[:, -1] + z) + net.out(h[-1])


def every_network():
    parts = {"lstm": nn.LSTM(8, 12, 2, bidirectional=True, batch_first=True), "gru": nn.GRU(24, 12, batch_first=True)}
    parts |= {"embed": nn.Embedding(50, 8), "cell": nn.RNNCell(12, 12), "conv": nn.Conv1d(12, 12, 3, padding=1)}
    return network(every_kind, fc=nn.Linear(12, 4), out=nn.Linear(12, 4, bias=False), **parts)


class TestWhatFollows:
    """Files, sizes and tables of such models."""

    @pytest.mark.parametrize("recipe", ["dynamic_w8", "dynamic_w4", "dynamic_w8_convolutions"])
    def test_saved_and_loaded_the_same_to_the_bit(self, recipe, tmp_path):
        model = pq.quantize(every_network(), recipe)
        words = torch.arange(28).reshape(4, 7)
        before = model(words)
        pq.save(model, tmp_path / "m.safetensors")
        loaded = pq.load(tmp_path / "m.safetensors")
        assert torch.equal(loaded(words), before)
        assert loaded.recipe == model.recipe
        assert size_bytes(loaded) == size_bytes(model)
        assert [s.name for s in loaded.sites] == [s.name for s in model.sites]

    def test_weights_take_a_byte_each(self):
        net = recurrent(nn.LSTM)
        weights = sum(p.numel() for name, p in net.named_parameters() if "weight" in name)
        biases = sum(p.numel() for name, p in net.named_parameters() if "bias" in name)
        scales = biases  # one a row of each weight, which each has a bias
        assert size_bytes(pq.quantize(net, W8)) == weights + 4 * biases + 4 * scales

    def test_layer_table(self):
        net, x = recurrent(nn.LSTM), images(9, 5, 32)
        model = pq.quantize(net, W8)
        model(x)
        table = layer_table(model, net, x, progress=False).set_index("name")
        assert table.loc["rnn.hh_l0.weight", "sqnr_db"] > 35
        assert table.loc["x", "sqnr_db"] > 35
        assert table.loc["rnn.hh_l0:state"].isna()["sqnr_db"]

    def test_sensitivity_ranks_recurrences_too(self):
        net = network(
            lambda net, x: net.fc(net.rnn(x)[0][:, -1]), rnn=nn.LSTM(8, 16, batch_first=True), fc=nn.Linear(16, 5)
        )
        batches = [(images(8, 6, 8), torch.arange(8) % 5)]
        table = sensitivity(net, W8, None, batches, progress=False).set_index("layer")
        assert set(table.index) == {"rnn.ih_l0", "rnn.hh_l0", "fc"}
        assert table.loc["rnn.hh_l0", ["weights", "activations", "tensors"]].tolist() == [
            *("int8", "uint8 online", "rnn.hh_l0:state")
        ]
        assert table["alone_sqnr_db"].between(20, 90).all()

    def test_gradients_pass_straight_through(self):
        model, x = pq.quantize(recurrent(nn.GRU), W8), images(9, 5, 32).requires_grad_()
        net = recurrent(nn.GRU)
        ours, theirs = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (model, net))
        assert error(ours, theirs) < 0.1

    def test_integers_alone_need_fixed_ranges(self):
        with pytest.raises(InputError, match="takes its range from each batch"):
            IntegerModel(pq.quantize(mlp(), W8))

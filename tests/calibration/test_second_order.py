"""Second-order rounding of whole networks: outputs come nearer, grids stay grids, and what can't be rounded stays."""

import copy

import pytest
import torch
from networks import images, network, sequence
from test_corrections import assert_deployable, conv, fire, residual, values
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer import InputError, Recipe, quantize
from pytorch_quantizer.calibration import second_order
from pytorch_quantizer.calibration.corrections import list_corrections
from pytorch_quantizer.calibration.reconstruction_run import ReconstructionRun
from pytorch_quantizer.calibration.second_order import round_weights
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.fold import fold
from pytorch_quantizer.graph.operations import label, layer_nodes
from pytorch_quantizer.graph.rescale import ensure_biases

W3A4 = Recipe(weights="int3", activations="int4", clip="mse", weight_clip="mse", first="int4", last="int4")
BATCHES = [images(6, 3, 8, 8), images(3, 3, 8, 8, seed=2)]
ALL = torch.cat(BATCHES)


def transposed():
    return sequence(
        conv(3),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
    )


def kinds():
    """Grouped, depthwise and dilated convolutions, and linear layers on tokens."""

    def forward(net, x):
        y = net.depthwise(net.first(x).relu()).relu()
        y = net.grouped(y).relu()
        return net.head(net.tokens(y.flatten(2).transpose(1, 2)).relu().mean(1))

    return network(
        forward,
        first=conv(3),
        depthwise=nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
        grouped=nn.Conv2d(8, 12, 3, stride=2, groups=4),
        tokens=nn.Linear(12, 10),
        head=nn.Linear(10, 3),
    )


NETS = pytest.mark.parametrize("net", [residual, fire, transposed, kinds])


def pair(net, recipe):
    """(the simulated model with weights rounded to nearest, the float graph it is compared with)"""
    graph, _ = fold(capture(net, ALL[:2]))
    ensure_biases(layer for _, layer in layer_nodes(graph))
    model = quantize(copy.deepcopy(graph), recipe.replace(weight_rounding="nearest"), BATCHES)
    model.meta["recipe"] = recipe
    return model, graph


@torch.no_grad()
def layer_error(layer, x, weight, bias, wanted, *, centred):
    """Mean squared error of a layer's outputs under another weight and bias; about each channel's mean or not."""
    found = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,)).double()
    difference = found - wanted
    channels = -1 if isinstance(layer, nn.Linear) else 1
    rows = difference.movedim(channels, 0).flatten(1)
    return float((rows - rows.mean(1, keepdim=True) if centred else rows).square().mean())


@NETS
@pytest.mark.parametrize("method", ["gptq", "second_order"])
def test_each_layers_outputs_come_nearer_on_its_own_inputs_than_by_nearest_rounding(net, method):
    """gptq: its own outputs on the inputs it reads. second_order: the float network's, on any inputs."""
    full = method == "second_order"
    recipe = W3A4.replace(weight_rounding=method)
    model, graph = pair(net(), recipe)
    nearest = {str(node.target): layer.weight.clone() for node, layer in layer_nodes(model)}
    corrections = {entry.tensor: entry for entry in round_weights(model, graph, BATCHES)}
    simulated, expected = values(model), values(graph)
    ratios = []
    for node, layer in layer_nodes(model):
        entry = corrections[f"{label(node)}.weight"]
        x, float_layer = simulated[node.all_input_nodes[0].name], graph.get_submodule(str(node.target))
        wanted = expected[node.name].double() if full else float_layer(x).double()
        bias = float_layer.bias
        errors = [
            layer_error(layer, x, w, bias, wanted, centred=full) for w in (nearest[str(node.target)], layer.weight)
        ]
        assert errors[1] <= errors[0] * (1 + 1e-6)
        if not isinstance(layer, nn.ConvTranspose2d):  # zeros between values count as windows in what is reported
            assert [entry.error_before, entry.error_after] == pytest.approx(errors, rel=1e-3, abs=1e-9)
        ratios.append(errors[1] / errors[0])
    assert min(ratios) < 0.8


@NETS
@pytest.mark.parametrize("method", ["gptq", "second_order"])
@pytest.mark.parametrize(
    "fields",
    [{}, {"weight_symmetric": False}, {"weight_granularity": "per_tensor"}, {"weights": "int1"}, {"weights": "int16"}],
    ids=["per channel", "affine", "per tensor", "one bit", "16 bits"],
)
def test_weights_and_biases_stay_on_grids_that_integer_kernels_run(net, method, fields):
    model = quantize(net(), W3A4.replace(**fields, weight_rounding=method), BATCHES)
    for _, layer in layer_nodes(model):
        assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight)
        assert torch.equal(layer.bias_quantizer(layer.bias), layer.bias)
    assert torch.isfinite(model(ALL)).all()
    if not fields and net is not transposed:
        assert_deployable(model)


@NETS
def test_the_network_comes_nearer_to_the_float_one(net):
    expected = net()(ALL)
    errors = [
        (quantize(net(), W3A4.replace(weight_rounding=method), BATCHES)(ALL) - expected).square().mean()
        for method in ("nearest", "second_order")
    ]
    assert errors[1] < 0.7 * errors[0]


def test_a_saved_model_is_the_same_to_the_bit(tmp_path):
    model = quantize(residual(), W3A4.replace(weight_rounding="second_order"), BATCHES)
    pq.save(model, tmp_path / "model.safetensors")
    assert torch.equal(pq.load(tmp_path / "model.safetensors")(ALL), model(ALL))


def test_gptq_changes_codes_alone():
    model, graph = pair(residual(), W3A4.replace(weight_rounding="gptq"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    round_weights(model, graph, BATCHES)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.endswith(".weight") for name in changed)


def test_repeats_to_the_bit_and_the_float_network_is_left_alone():
    net, recipe = residual(), W3A4.replace(weight_rounding="second_order")
    before = copy.deepcopy(net.state_dict())
    first, again = (quantize(net, recipe, BATCHES) for _ in range(2))
    assert torch.equal(first(ALL), again(ALL))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_order_of_inputs_and_the_damping_count():
    found = [
        quantize(residual(), W3A4.replace(weight_rounding="gptq", **fields), BATCHES)(ALL)
        for fields in ({}, {"rounding_order": "size"}, {"rounding_damping": 1.0})
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_reconstruction_behind_it_takes_its_scales_for_scales_and_not_for_gains(monkeypatch):
    given = []

    def looked_at(self, model, graph, scales, **kwargs):
        given.extend(scales[path] / model.get_submodule(path).weight_quantizer.scale for path in scales)
        return []

    monkeypatch.setattr(ReconstructionRun, "carry_out", looked_at)
    recipe = W3A4.replace(weight_rounding="second_order", reconstruction="layer", weights="int2")
    quantize(residual(), recipe, BATCHES)
    assert len(given) == 7
    assert all((gain == 1).all() for gain in given)


class TestWhatStaysNearest:
    def codes(self, model, path):
        layer = model.get_submodule(path)
        return layer.weight_quantizer.quantize(layer.weight)

    def test_a_layer_that_is_called_twice(self):
        def net():
            return network(
                lambda net, x: net.b(net.a(net.a(net.first(x)).relu()).relu()), first=conv(3), a=conv(), b=conv()
            )

        rounded, plain = (
            quantize(net(), W3A4.replace(weight_rounding=method), BATCHES) for method in ("gptq", "nearest")
        )
        assert torch.equal(self.codes(rounded, "a"), self.codes(plain, "a"))
        assert not torch.equal(self.codes(rounded, "b"), self.codes(plain, "b"))
        assert "weight_rounding: weights left as they were (a: it is called 2 times)" in rounded.notes

    def test_a_layer_of_more_inputs_than_second_moments_are_kept_of(self, monkeypatch):
        monkeypatch.setattr(second_order, "MOST_INPUTS", 40)

        def net():
            return sequence(conv(3), nn.ReLU(), conv(), nn.ReLU(), conv())

        rounded, plain = (
            quantize(net(), W3A4.replace(weight_rounding=method), BATCHES) for method in ("second_order", "nearest")
        )
        assert not torch.equal(self.codes(rounded, "body.0"), self.codes(plain, "body.0"))
        for path in ("body.2", "body.4"):
            assert torch.equal(self.codes(rounded, path), self.codes(plain, path))
        [note] = [note for note in rounded.notes if "left as they were" in note]
        for path in ("body.2", "body.4"):
            assert f"{path}: its outputs have 72 inputs, above 40" in note

    def test_where_every_weight_is_rounded_nothing_is_told(self):
        model = quantize(residual(), W3A4.replace(weight_rounding="gptq", first="float32", deployable=False), BATCHES)
        assert not [note for note in model.notes if "left as they were" in note]

    def test_other_number_types(self):
        recipe = Recipe(weights="kmeans3", first="kmeans3", last="kmeans3", activations="float32", deployable=False)
        recipe = recipe.replace(residual="float32", bias="float32")
        left = pytest.warns(UserWarning, match=r"left 7 weights as they were \(.*: its weight is kmeans3")
        with left, pytest.warns(UserWarning, match="weight_rounding was asked for and changed nothing"):
            model = quantize(residual(), recipe.replace(weight_rounding="second_order"), BATCHES)
        assert torch.equal(model(ALL), quantize(residual(), recipe, BATCHES)(ALL))


class TestHardInputs:
    @pytest.mark.parametrize("method", ["gptq", "second_order"])
    @pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
    def test_constant_images(self, method, value):
        model = quantize(residual(), W3A4.replace(weight_rounding=method), [torch.full((4, 3, 8, 8), value)])
        assert torch.isfinite(model(ALL)).all()

    @pytest.mark.parametrize("method", ["gptq", "second_order"])
    def test_dead_channels_and_channels_of_zeros(self, method):
        net = residual()
        with torch.no_grad():
            net.a.weight[2], net.a.bias[2] = 0, -5  # its ReLU gives zeros
            net.b.weight[3], net.b.bias[3] = 0, 0
            net.c.weight[1] = 1e-30
        model = quantize(net, W3A4.replace(weight_rounding=method), BATCHES)
        assert torch.isfinite(model(ALL)).all()
        assert torch.equal(model.b.weight[3], torch.zeros_like(model.b.weight[3])) or method == "second_order"

    @pytest.mark.parametrize("count", [1, 9])
    def test_fewer_windows_than_inputs_do_little_harm_to_other_images(self, count):
        net = sequence(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 5))
        others = images(64, 3, 8, 8, seed=9)
        expected = net(others)
        errors = [
            (quantize(net, W3A4.replace(weight_rounding=method), [ALL[:count]])(others) - expected).square().mean()
            for method in ("nearest", "second_order")
        ]
        assert errors[1] < (2.5 if count == 1 else 1.3) * errors[0]

    def test_a_bias_that_a_finer_grid_could_not_hold(self):
        net = residual()
        with torch.no_grad():
            net.b.weight *= 1e-6
            net.b.bias.fill_(50.0)
        model = quantize(net, W3A4.replace(weight_rounding="second_order"), BATCHES)
        assert torch.allclose(model.b.bias, net.b.bias, rtol=0, atol=0.5)


class TestAsked:
    def test_is_done_first(self):
        recipe = W3A4.replace(weight_rounding="gptq", weight_correction="mean", activation_correction="both")
        names = [step.name for step in list_corrections(recipe)]
        assert names == ["weight_rounding", "weight_correction", "activation_correction"]

    def test_needs_images(self):
        recipe = Recipe(
            **{"weights": "int4", "activations": "float32", "first": "float32", "last": "float32", "bias": "float32"},
            weight_rounding="gptq",
            deployable=False,
        )
        with pytest.raises(InputError, match="give calibration="):
            quantize(residual(), recipe)

    @pytest.mark.parametrize("damping", [0, -1, 1.5, True, "much", float("nan")])
    def test_a_damping_out_of_its_rule(self, damping):
        with pytest.raises(InputError, match="rounding_damping must be from 1e-06 to 1, got"):
            Recipe(rounding_damping=damping)

    def test_an_unknown_method(self):
        with pytest.raises(InputError, match="weight_rounding must be one of nearest, gptq, second_order"):
            Recipe(weight_rounding="gtpq")

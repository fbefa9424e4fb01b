"""The simulated model: weights and biases on their grids, quantizers where the tensors are, nothing overwritten."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from networks import Untraceable, images, network, reading_float, sequence
from torch import fx, nn

from pytorch_quantizer import Override, Recipe, quantize
from pytorch_quantizer.graph.fuse import fused
from pytorch_quantizer.graph.operations import LAYERS, layer_nodes
from pytorch_quantizer.models import create_model

W8A4 = Recipe(activations="int4", clip="laplace")


def residual_net():
    """Everything at once: shared layers, additions, concatenation, in-place modules, pooling, a parameter, a gate."""

    def forward(net, x):
        y = net.relu(net.bn(net.a(x)))
        z = net.b(y) + F.pad(y[:, :, :, 1:], (1, 0))
        z = net.relu(z)
        z = torch.cat([net.b(z), F.max_pool2d(z, 3, 1, 1)], 1)
        gate = torch.sigmoid(net.gate(F.adaptive_avg_pool2d(z, 1)))
        z = F.silu(net.c(z) * gate, inplace=True) + net.position
        return net.fc(net.odd(z).mean((2, 3)).relu_())

    return network(
        forward,
        a=nn.Conv2d(3, 4, 3, padding=1, bias=False),
        bn=nn.BatchNorm2d(4),
        relu=nn.ReLU(inplace=True),
        b=nn.Conv2d(4, 4, 3, padding=1),
        c=nn.Conv2d(8, 6, 1),
        gate=nn.Conv2d(8, 6, 1),
        position=nn.Parameter(torch.linspace(-1, 1, 6).view(6, 1, 1)),
        odd=Untraceable(),
        fc=nn.Linear(6, 5),
    )


def simulated(net, recipe=W8A4, x=None):
    return quantize(net, recipe, [images() if x is None else x], progress=False)


def owners(model):
    """Each layer with its path."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LAYERS)]


def sites(model):
    return {site.name: site for site in model.sites}


class TestWeights:
    @pytest.mark.parametrize("weights", ["int8", "int4", "int2", "int1"])
    def test_lie_on_their_grid(self, weights):
        net = residual_net()
        model = simulated(net, Recipe(weights=weights, activations="int8", first=weights, last=weights))
        for name, layer in owners(model):
            quantizer = sites(model)[f"{name}.weight"].quantizer
            assert quantizer is layer.weight_quantizer
            assert torch.equal(quantizer(layer.weight), layer.weight)
            for row in layer.weight.flatten(1):
                assert row.unique().numel() <= 2 ** int(weights[3:])

    def test_are_the_folded_weights_rounded(self):
        net = sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        layer = simulated(net).get_submodule("body.0")
        step = layer.weight_quantizer.scale.view(-1, 1, 1, 1)
        assert ((layer.weight - net.body[0].weight).abs() <= step * 0.5001).all()

    def test_tied_to_another_layers_stay_on_their_own_grid(self):
        a, b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        net = network(lambda net, x: net.b(net.a(x).relu()).mean((2, 3)), a=a, b=b)
        net.b.weight = net.a.weight
        model = simulated(net, Recipe(weights="int3", first="int8", last=None))
        for name, layer in owners(model):
            assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight), name


class TestBiases:
    @pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
    def test_are_int32_on_the_accumulators_grid(self, granularity):
        net = sequence(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 6, 3, groups=2),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(384, 2),
        )
        model = simulated(net, W8A4.replace(weight_granularity=granularity))
        inputs = {"body.0": "x", "body.2": "body.1", "body.5": "body.3"}
        for name, source in inputs.items():
            layer, scale = model.get_submodule(name), sites(model)[source].quantizer.scale
            weight_scale = layer.weight_quantizer.scale
            if layer.weight_quantizer.axis == 1:
                weight_scale = weight_scale.repeat(2)  # three scales for the three outputs of each of two groups
            grid = (scale * weight_scale).expand(layer.bias.shape).double()
            codes = torch.round(layer.bias.double() / grid)
            assert codes.abs().max() < 2**31
            assert torch.equal((codes * grid).float(), layer.bias)
            assert (layer.bias.double() - net.get_submodule(name).bias.double()).abs().le(grid * 0.51 + 1e-7).all()
            assert sites(model)[f"{name}.bias"].quantizer is layer.bias_quantizer

    def test_of_a_channel_without_weights_is_no_coarser_than_the_others(self):
        net = sequence(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1))
        with torch.no_grad():
            net.body[1].weight[2] = 0
            net.body[1].bias[2] = 0.123
        layer = simulated(net).get_submodule("body.1")
        assert not layer.weight[2].any()
        assert abs(float(layer.bias[2].detach()) - 0.123) <= layer.bias_quantizer.scale.min() / 2

    def test_fit_into_32_bits_even_where_weights_are_tiny(self):
        """A channel whose weights all but vanish still adds its bias: it must not saturate."""
        net = sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
        with torch.no_grad():
            net.body[2].weight[1] *= 1e-12
            net.body[2].bias[1] = 0.7
        model = simulated(net)
        assert model.get_submodule("body.2").bias[1].item() == pytest.approx(0.7, rel=1e-6)
        layer = model.get_submodule("body.2")
        assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight)

    def test_fit_into_32_bits_at_16_bits(self):
        net = sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        with torch.no_grad():
            net.body[0].bias.copy_(torch.tensor([9.0, -9.0, 3.0, 0.0]))
        model = simulated(net, Recipe(weights="int16", activations="int16", first=None, last=None))
        torch.testing.assert_close(model.get_submodule("body.0").bias, net.body[0].bias, rtol=1e-6, atol=1e-6)

    def test_stay_float_with_the_reason_where_there_is_no_grid(self):
        net = network(lambda net, x: net.b(net.b(net.a(x))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
        model = simulated(net)
        assert "called 2 times" in sites(model)["b.bias"].reason
        assert torch.equal(model.get_submodule("b").bias, net.b.bias)
        weights_only = quantize(net, Recipe(activations="float32", deployable=False))
        assert "has no integer grid" in sites(weights_only)["a.bias"].reason

    def test_stay_float_where_asked(self):
        net = residual_net()
        model = simulated(net, W8A4.replace(bias="float32", deployable=False))
        assert {s.reason for s in model.sites if s.kind == "bias"} == {"the recipe asks for float32"}
        assert torch.equal(model.get_submodule("fc").bias, net.fc.bias)

    def test_every_bias_is_a_site_once(self):
        found = Counter(s.node for s in simulated(residual_net()).sites if s.kind == "bias")
        assert found == Counter({"a.bias": 1, "b.bias": 1, "c.bias": 1, "gate.bias": 1, "fc.bias": 1})


class TestInPlace:
    """Quantizers overwrite what nobody else reads; the results are those of a run that overwrites nothing."""

    @pytest.mark.parametrize("wide", [False, True])
    @pytest.mark.parametrize("make", [residual_net, lambda: create_model("resnet20")], ids=["all at once", "resnet20"])
    def test_equal_to_a_run_out_of_place(self, make, wide):
        torch.manual_seed(0)
        net, x = make().eval(), images(2, 3, 16, 16)
        model = simulated(net, W8A4.replace(wide_residual=wide), x=x)
        assert "inplace = True" in model.code, "nothing is overwritten: the test would be empty"
        assert not any(node.kwargs.get("inplace") for node in model.graph.nodes)
        with torch.no_grad():
            expected, given = fx.Interpreter(model).run(x.clone()), x.clone()
            for _ in range(2):
                assert torch.equal(model(given), expected)
            assert torch.equal(given, x)
        assert torch.equal(model(x), expected)  # with gradients nothing is overwritten

    def test_results_that_may_be_views_are_not_overwritten(self):
        def forward(net, x):
            y = net.a(x).relu()
            return net.b(torch.einsum("nchw->ncwh", y)) + net.c(y)

        net = network(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Conv2d(4, 4, 1))
        recipe = W8A4.replace(first=None, last=None, activations="int8", overrides=(Override("b", activations="int2"),))
        model = simulated(net, recipe)
        with torch.no_grad():
            overwriting_allowed = model(images())
        assert torch.equal(overwriting_allowed, model(images()))  # with gradients nothing is overwritten

    def test_only_fresh_results_with_one_reader(self):
        for model in (simulated(residual_net()), simulated(residual_net(), W8A4.replace(wide_residual=True))):
            overwriting = [node for node in fused(model).nodes if node.kwargs.get("inplace")]
            assert overwriting
            for node in overwriting:
                assert len(node.args[0].users) == 1
                assert node.args[0].op not in ("placeholder", "get_attr")

    def test_parameters_are_left_alone(self):
        net = residual_net()
        model = simulated(net)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            model(images(seed=3))
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(model.position, net.position)
        assert sites(model)["position"].quantizer is not None


class TestQuantizers:
    def test_a_layer_called_twice_reads_each_tensor_on_its_own_grid(self):
        net = network(lambda net, x: net.b(net.b(net.a(x)).relu() * 9), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
        model = simulated(net)
        assert reading_float(model, images()) == []
        assert sites(model)["a"].quantizer.scale != sites(model)["mul"].quantizer.scale

    def test_are_the_sites(self):
        model = simulated(residual_net())
        modules = set(model.modules())
        for site in model.sites:
            assert site.quantizer is None or site.quantizer in modules, site.name

    def test_are_used_once_each_where_the_tensor_is_made(self):
        model = simulated(residual_net())
        calls = Counter(node.target for node in model.graph.nodes if str(node.target).startswith("quantizers."))
        assert set(calls.values()) == {1}
        activations = [s for s in model.sites if s.is_activation and s.quantizer is not None]
        assert len(calls) == len(activations)

    def test_names_that_collide_get_numbers(self):
        net = network(
            lambda net, x: net.last(net.a_b(net.a["b"](x))),
            a_b=nn.Conv2d(4, 4, 1),
            a=nn.ModuleDict({"b": nn.Conv2d(3, 4, 1)}),
            last=nn.Conv2d(4, 2, 1),
        )
        model = simulated(net)
        assert sites(model)["a.b"].quantizer is not sites(model)["a_b"].quantizer
        assert reading_float(model, images()) == []

    def test_sixteen_bits_are_the_float_network(self):
        net = residual_net()
        recipe = Recipe(weights="int16", activations="int16", residual=None, first=None, last=None)
        expected = net(images())
        assert (simulated(net, recipe)(images()) - expected).abs().max() < 2e-3 * expected.abs().max()

    def test_every_layer_is_still_there(self):
        assert [str(node.target) for node, _ in layer_nodes(simulated(residual_net()))] == [
            "a",
            "b",
            "b",
            "gate",
            "c",
            "fc",
        ]


def test_a_wide_residual_reaches_an_addition_by_keyword():
    net = network(
        lambda net, x: net.c(torch.add(net.b(y := F.relu(net.a(x))), other=y)),
        **{name: nn.Conv2d(3 if name == "a" else 4, 4, 1) for name in "abc"},
    )
    model = simulated(net, W8A4.replace(wide_residual=True))
    [addition] = [node for node in model.graph.nodes if node.name == "add"]
    assert "wide" in str(addition.kwargs["other"].target)


def test_a_wide_residual_that_stays_float_is_not_read_from_the_narrow_grid():
    net = network(
        lambda net, x: net.c(net.b(y := F.relu(net.a(x))) + y),
        **{name: nn.Conv2d(3 if name == "a" else 4, 4, 1) for name in "abc"},
    )
    recipe = W8A4.replace(wide_residual=True, deployable=False, overrides=(Override("add", activations="float32"),))
    model = simulated(net, recipe)
    [addition] = [node for node in model.graph.nodes if node.name == "add"]
    assert isinstance(model.get_submodule(str(addition.args[1].target)), nn.Identity)
    assert addition.args[1].args[0].name == "relu"


def test_a_wide_residual_through_sizes_that_were_read_from_it():
    def forward(net, x):
        y = F.relu(net.a(x))
        return net.d(net.b(y).view(y.shape[0], -1) + y.view(y.shape[0], -1))

    net = network(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), d=nn.Linear(4 * 64, 3))
    assert torch.isfinite(simulated(net, W8A4.replace(wide_residual=True))(images())).all()


def test_half_precision_moves_grids_and_never_rounds_them():
    model = simulated(residual_net())
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("scale")}
    model.half()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers() if name in before)

"""Placement, sentence by sentence of the design's section 2: what is quantized, where, with how many bits."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from networks import Untraceable, UntraceablePair, images, network, reading_float, sequence
from torch import nn

from pytorch_quantizer import InputError, Override, Recipe, capture, fold, quantize
from pytorch_quantizer.graph.operations import keeps_values, label
from pytorch_quantizer.quantization.clipping import Domain

W4A4 = Recipe(weights="int4", activations="int4")


def quantized(net, recipe=W4A4, x=None, **fields):
    x = images() if x is None else x
    model = quantize(net, recipe.replace(**fields), [x], progress=False)
    check_sites(model)
    return model


def check_sites(model):
    """Nothing is left in float silently: what holds of every quantized model."""
    names = Counter(site.name for site in model.sites)
    assert max(names.values()) == 1, f"names must be unique: {names.most_common(3)}"
    by_name = {site.name: site for site in model.sites}
    for site in model.sites:
        facts = (site.quantizer is not None, site.carrier is not None, bool(site.reason))
        assert sum(facts) == 1, f"{site.name} must be quantized, carried or explained: {site}"
        if site.carrier is not None:
            assert not by_name[site.carrier].is_float, f"{site.name} is carried by {site.carrier}, which stays in float"
    covered = {site.node for site in model.sites} | set(by_name)
    assert {name for name, _ in model.named_parameters()} <= covered


def bits(model):
    return {site.name: site.quantizer.bits for site in model.sites if site.quantizer is not None}


def site(model, name):
    [found] = [site for site in model.sites if site.name == name]
    return found


class TestByOutputs:
    RECIPE = Recipe(weights="int4", weight_clip="output_mse")

    def test_what_has_no_matrix_form_is_listed(self):
        net = sequence(nn.ConvTranspose2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        model = quantize(net, self.RECIPE, images(), progress=False)
        found = {s.name: (s.by_outputs, s.remark) for s in model.sites if s.kind == "weight"}
        remark = "range by mse, not output_mse: the inputs of ConvTranspose2d have no matrix form here"
        assert found == {"body.0.weight": (False, remark), "body.2.weight": (True, None)}
        assert f"body.0.weight: {remark}" in model.summary()

    @pytest.mark.parametrize("weights", ["pot4", "fp8_e4m3", "kmeans4", "ternary"])
    def test_another_number_type_is_refused_by_name(self, weights):
        recipe = self.RECIPE.replace(deployable=False, overrides=[{"layers": "body.1", "weights": weights}])
        net = sequence(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))
        said = f"body.1.weight: weight_clip output_mse is for int types, not {weights}: override one of them"
        with pytest.raises(InputError, match=said):
            quantized(net, recipe)
        other = Override("body.1", weights=weights, weight_clip="minmax")
        assert site(quantized(net, recipe.replace(overrides=[other])), "body.0.weight").by_outputs

    def test_what_would_take_gigabytes_is_listed(self):
        net = sequence(nn.Flatten(), nn.Linear(9000, 2))
        model = quantize(net, self.RECIPE, images(1, 10, 30, 30), progress=False)
        assert "9,000 inputs an output would take 0.6 GiB of second moments" in site(model, "body.1.weight").remark


@pytest.mark.parametrize("field", ["weights", "activations"])
def test_a_range_that_a_number_type_does_not_take_names_the_tensor(field):
    clips = {"weights": {"weight_clip": "kl"}, "activations": {"clip": "kl"}}[field]
    named = {"weights": "body.0.weight", "activations": "x"}[field]
    recipe = Recipe(**{field: "ternary", "first": "ternary"}, **clips, deployable=False)
    with pytest.raises(InputError, match=rf"{named}: clip of ternary must be minmax .*, got 'kl'"):
        quantized(sequence(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)), recipe)


def chain(middle, recipe=W4A4, channels=4):
    """A convolution, something, a convolution, and a linear layer at the end."""
    net = network(
        lambda net, x: net.fc(net.b(middle(net, net.a(x))).mean((2, 3))),
        a=nn.Conv2d(3, 4, 3, padding=1),
        b=nn.Conv2d(channels, 4, 3, padding=1),
        fc=nn.Linear(4, 2),
        bn=nn.BatchNorm2d(4),
        other=nn.Conv2d(4, 4, 3, padding=1),
    )
    return net, quantized(net, recipe)


PRODUCERS = {
    "conv": lambda net, x: x,
    "relu6": lambda net, x: F.relu6(x),
    "hardtanh": lambda net, x: F.hardtanh(x),
    "silu": lambda net, x: F.silu(x),
    "hardswish": lambda net, x: F.hardswish(x),
    "gelu": lambda net, x: F.gelu(x),
    "sigmoid": lambda net, x: torch.sigmoid(x),
    "softmax": lambda net, x: x.softmax(1),
    "layer norm": lambda net, x: F.layer_norm(x, x.shape[1:]),
    "batch norm behind relu": lambda net, x: net.bn(x.relu()),
    "interpolate": lambda net, x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "clamp": lambda net, x: x.clamp(-1, 1),
    "elu": lambda net, x: F.elu(x),
    "max of two": lambda net, x: torch.maximum(x, net.other(x)),
    "swish written out": lambda net, x: x * torch.sigmoid(x),
    "hardswish written out": lambda net, x: x * F.relu6(x + 3) / 6,
    "hardswish of a relu": lambda net, x: F.relu6(x.relu() + 3),
    "where": lambda net, x: torch.where(x > 0, x, 0.1 * x),
    "transposed convolution as a function": lambda net, x: F.conv_transpose2d(x, net.other.weight, padding=1),
}


ARITHMETIC = {
    "add": lambda net, x: x + net.other(x),
    "add method": lambda net, x: x.add(net.other(x)),
    "sub": lambda net, x: torch.sub(x, net.other(x)),
    "add a constant": lambda net, x: x + 0.3,
    "mul": lambda net, x: x * net.other(x),
    "mul by a channel": lambda net, x: x * net.other(x).mean((2, 3), keepdim=True),
    "div": lambda net, x: x / 3.0,
    "concat": lambda net, x: torch.cat([x[:, :2], net.other(x)[:, :2]], 1),
    "stack": lambda net, x: torch.stack([x, net.other(x)], 0).sum(0),
    "average pool": lambda net, x: F.avg_pool2d(x, 2),
    "adaptive pool": lambda net, x: F.adaptive_avg_pool2d(x, 4),
    "matmul": lambda net, x: x @ net.other(x).transpose(2, 3),
    "einsum": lambda net, x: torch.einsum("nchw,ndwk->ndhk", x, net.other(x)),
}


KEEPING = {
    "max-pool": lambda net, x: F.max_pool2d(x, 2),
    "second relu": lambda net, x: F.relu(x),
    "slice": lambda net, x: x[:, :, 1:, ::2],
    "zero padding": lambda net, x: F.pad(x, (1, 1, 2, 0)),
    "reflection": lambda net, x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "reshape": lambda net, x: x.reshape(x.size(0), 4, 4, 16),
    "view": lambda net, x: x.view(x.size(0), 4, -1, 4),
    "transpose": lambda net, x: x.transpose(2, 3),
    "permute": lambda net, x: torch.permute(x, (0, 1, 3, 2)),
    "flatten": lambda net, x: x.flatten(2).unflatten(2, (8, 8)),
    "split": lambda net, x: x.split(4, 1)[0],
    "chunk": lambda net, x: torch.chunk(x, 2, 2)[1],
    "dropout": lambda net, x: F.dropout(x, 0.5, training=net.training),
    "several": lambda net, x: F.max_pool2d(F.pad(x[:, :, 1:], (1, 1)), 2).transpose(2, 3),
}


class TestTensors:
    def test_a_fused_relu_is_quantized_once(self):
        net = sequence(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2)
        )
        model = quantized(net)
        assert site(model, "body.0").carrier == "body.2"
        relu = site(model, "body.2")
        assert relu.consumers == ("body.3",)
        assert relu.quantizer.range()[0] == 0
        activations = [s.name for s in model.sites if s.is_activation and s.quantizer is not None]
        assert activations == ["x", "body.2", "body.3"]
        assert not reading_float(model, images())

    @pytest.mark.parametrize("middle", PRODUCERS.values(), ids=PRODUCERS)
    def test_whatever_produced_them(self, middle):
        _, model = chain(middle)
        assert reading_float(model, images()) == []
        assert reading_float(model, images(seed=9) * 3) == []

    @pytest.mark.parametrize("middle", ARITHMETIC.values(), ids=ARITHMETIC)
    def test_that_arithmetic_reads(self, middle):
        _, model = chain(middle)
        assert reading_float(model, images()) == []
        assert bits(model)["a"] in (4, 8)

    @pytest.mark.parametrize("keep", KEEPING.values(), ids=KEEPING)
    def test_operations_that_keep_values_pass_the_grid_on(self, keep):
        _, model = chain(lambda net, x: keep(net, x.relu()))
        activations = [s.name for s in model.sites if s.is_activation and s.quantizer is not None]
        assert activations == ["x", "relu", "b", "mean"]
        assert site(model, "relu").consumers == ("b",)
        assert reading_float(model, images()) == []

    def test_padding_with_another_value_does_not(self):
        _, model = chain(lambda net, x: F.pad(x.relu(), (1, 1), value=0.123))
        assert reading_float(model, images()) == []
        assert site(model, "pad").quantizer is not None

    def test_a_ceiling_below_the_grid_does_not_pass_it_on(self):
        """ReLU6 of a ReLU can't be negative, but its 6 is a new value."""
        net = network(
            lambda net, x: net.b(F.relu6(net.a(x).relu() * 3.7)).mean((2, 3)),
            a=nn.Conv2d(3, 4, 3),
            b=nn.Conv2d(4, 4, 3),
        )
        x = images() * 10
        assert reading_float(quantized(net, x=x), x) == []

    def test_squeeze_and_excitation(self):
        def squeeze_excite(net, x):
            gate = x.mean((2, 3), keepdim=True)
            return x * torch.sigmoid(net.other(F.relu(gate)))

        _, model = chain(lambda net, x: squeeze_excite(net, F.silu(x)))
        assert reading_float(model, images()) == []
        low, high = site(model, "sigmoid").quantizer.range()
        assert (low.item(), high.item()) == (0, pytest.approx(1))
        assert {"silu", "relu", "sigmoid", "mul"} <= set(bits(model))

    def test_a_standalone_norm(self):
        net = sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(1))
        model = quantized(net)
        assert site(model, "body.2").quantizer is not None
        assert "body.2" in site(model, "body.1").reason
        for name in ("body.2.weight", "body.2.bias"):
            assert "BatchNorm2d" in site(model, name).reason or "no" in site(model, name).reason
        assert reading_float(model, images()) == []

    def test_logits_stay_float(self):
        model = quantized(sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()))
        assert site(model, "body.2").reason == site(model, "body.3").reason == "network output"
        assert model(images()).unique().numel() > 200

    def test_a_relu_at_the_end_stays_float_too(self):
        model = quantized(sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()))
        assert site(model, "body.3").reason == "network output"
        assert site(model, "body.2").is_float

    def test_attention(self):
        net = network(
            lambda net, x: net.fc((x + net.attention(x, x, x)[0]).mean(1)),
            attention=nn.MultiheadAttention(16, 4, batch_first=True),
            fc=nn.Linear(16, 3),
        )
        x = images(4, 6, 16)
        model = quantized(net, x=x)
        assert reading_float(model, x) == []
        assert site(model, "attention.softmax").quantizer.range()[1] == pytest.approx(1)


class TestConcatenation:
    def test_one_grid_serves_all(self):
        _, model = chain(lambda net, x: torch.cat([F.relu(net.other(x)), x], 1)[:, :4])
        assert site(model, "relu").carrier == "cat"
        assert "cat" in bits(model)
        assert reading_float(model, images(), arithmetic=False) == []

    def test_a_part_that_others_read_has_its_own(self):
        def dense(net, x):
            y = F.relu(x)
            return torch.cat([net.other(y), y], 1)[:, 2:6]

        _, model = chain(dense)
        assert site(model, "other").carrier == "cat"
        assert set(site(model, "relu").consumers) == {"other", "cat"}
        assert reading_float(model, images(), arithmetic=False) == []

    def test_in_float_its_parts_are_in_float(self):
        net, _ = chain(lambda net, x: torch.cat([F.relu(net.other(x)), x], 1)[:, :4])
        model = quantized(
            net, activations="float32", residual=None, first=None, last=None, bias="float32", deployable=False
        )
        assert site(model, "cat").is_float
        assert site(model, "relu").is_float


def plain(**options):
    """Five layers in a row, with an addition and a second reader: x → a → relu → (b, c) → add → d → relu → fc."""

    def forward(net, x):
        y = net.a(x).relu()
        z = net.b(y) + net.c(y)
        return net.fc(net.d(z).relu().mean((2, 3)))

    layers = {name: nn.Conv2d(3 if name == "a" else 4, 4, 3, padding=1) for name in "abcd"}
    return network(forward, **layers, fc=nn.Linear(4, 3), **options)


class TestBits:
    def test_first_and_last_layer_weight_and_input(self):
        model = quantized(plain())
        found = bits(model)
        assert {name: found[f"{name}.weight"] for name in ("a", "b", "c", "d", "fc")} == {
            "a": 8, "b": 4, "c": 4, "d": 4, "fc": 8,
        }  # fmt: skip
        assert (found["x"], found["relu"], found["mean"]) == (8, 4, 8)
        assert (found["b"], found["c"]) == (8, 8)  # they feed only an addition
        assert (found["add"], found["relu_1"]) == (4, 4)

    def test_as_asked(self):
        found = bits(quantized(plain(), first="int6", last="int7", residual="int5"))
        assert (found["a.weight"], found["x"]) == (6, 6)
        assert (found["fc.weight"], found["mean"]) == (7, 7)
        assert (found["b"], found["c"]) == (5, 5)

    def test_narrower_than_the_others_where_said(self):
        found = bits(quantized(plain(), weights="int8", activations="int8", first="int4", last="int5", residual="int3"))
        assert (found["a.weight"], found["x"]) == (4, 4)
        assert (found["fc.weight"], found["mean"]) == (5, 5)
        assert (found["b"], found["c"], found["b.weight"], found["relu"]) == (3, 3, 8, 8)

    def test_left_open_they_never_narrow(self):
        found = bits(quantized(plain(), weights="int10", activations="int9"))
        assert {value for name, value in found.items() if name.endswith(".weight")} == {10}
        assert {value for name, value in found.items() if not name.endswith((".weight", ".bias"))} == {9}

    def test_a_tensor_takes_the_widest_request_of_its_readers(self):
        overrides = (Override("b", activations="int7"), Override("c", activations="int6"))
        found = bits(quantized(plain(), overrides=overrides))
        assert found["relu"] == 7

    def test_overrides_by_pattern_later_ones_win(self):
        overrides = (Override("[bc]", weights="int2"), Override("c", weights="int3", activations="int5"))
        found = bits(quantized(plain(), overrides=overrides))
        assert (found["b.weight"], found["c.weight"], found["d.weight"]) == (2, 3, 4)
        assert found["relu"] == 5

    def test_overrides_reach_the_first_layer_and_operations(self):
        overrides = (Override("a", weights="int2", activations="int3"), Override("add", activations="int6"))
        found = bits(quantized(plain(), overrides=overrides))
        assert (found["a.weight"], found["x"]) == (2, 3)
        assert (found["b"], found["c"]) == (6, 6)

    def test_overrides_of_clipping(self):
        model = quantized(plain(), overrides=(Override("d", clip="laplace", weight_clip="gaussian"),))
        clips = {s.name: s.quantizer.clip for s in model.sites if s.quantizer is not None and s.kind != "bias"}
        assert {name for name, clip in clips.items() if clip != "minmax"} == {"add", "d.weight"}
        assert (clips["add"], clips["d.weight"]) == ("laplace", "gaussian")

    @pytest.mark.parametrize("layer", ["b", "c"])
    def test_an_override_of_any_reader_chooses_the_clipping(self, layer):
        model = quantized(plain(), overrides=(Override(layer, clip="laplace"),))
        assert site(model, "relu").quantizer.clip == "laplace"

    def test_an_override_of_a_shared_layer_is_for_all_its_calls(self):
        net = network(lambda net, x: net.b(F.relu(net.b(net.a(x)))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
        found = bits(quantized(net, weights="int6", last="int6", overrides=(Override("b", weights="int3"),)))
        assert found["b.weight"] == 3

    def test_float32_is_listed_as_asked_for(self):
        overrides = (Override("d", weights="float32", activations="float32"),)
        model = quantized(plain(), overrides=overrides, deployable=False)
        for name in ("d.weight", "add"):
            assert site(model, name).reason == "the recipe asks for float32"
        assert site(model, "d.bias").is_float
        assert reading_float(model, images()) == ["d"]

    def test_a_pattern_without_a_layer_is_an_error(self):
        with pytest.raises(InputError, match=r"override 'layer9\.\*' matches no layer; layers are a, add, b"):
            quantized(plain(), overrides=(Override("layer9.*"),))

    def test_a_shared_layer_takes_the_widest_request_of_its_calls(self):
        net = network(lambda net, x: net.a(net.a(net.b(x)).relu()), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(3, 4, 1))
        assert bits(quantized(net))["a.weight"] == 8  # its second call is the last layer


class TestKindsOfGrid:
    def test_activations(self):
        model = quantized(plain())
        kinds = {s.name: s.kind for s in model.sites if s.is_activation}
        assert (kinds["x"], kinds["relu"], kinds["b"], kinds["add"]) == (
            "input",
            "activation",
            "residual",
            "activation",
        )
        for s in model.sites:
            if s.is_activation and s.quantizer is not None:
                assert (s.quantizer.axis, s.quantizer.signed, s.quantizer.symmetric) == (None, False, False)

    def test_symmetric_activations_are_signed_unless_they_cannot_be_negative(self):
        model = quantized(plain(), activation_symmetric=True)
        assert site(model, "add").quantizer.signed
        assert not site(model, "relu").quantizer.signed
        assert not any(bool(s.quantizer.zero_point.any()) for s in model.sites if s.is_activation and s.quantizer)

    def test_weights(self):
        model = quantized(plain())
        quantizer = site(model, "b.weight").quantizer
        assert (quantizer.axis, quantizer.symmetric, quantizer.narrow, quantizer.signed) == (0, True, True, True)
        model = quantized(plain(), weight_granularity="per_tensor", weight_symmetric=False, weight_narrow=False)
        quantizer = site(model, "b.weight").quantizer
        assert (quantizer.axis, quantizer.symmetric, quantizer.narrow) == (None, False, False)

    def test_one_bit_weights_are_affine(self):
        quantizer = site(quantized(plain(), weights="int1"), "b.weight").quantizer
        assert (quantizer.bits, quantizer.symmetric) == (1, False)

    def test_a_transposed_convolution_has_its_outputs_on_axis_one(self):
        net = sequence(nn.ConvTranspose2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3))
        assert site(quantized(net), "body.0.weight").quantizer.scale.shape == (5,)

    @pytest.mark.parametrize("clip", ["minmax", "laplace", "gaussian"])
    def test_a_relu_is_fitted_to_what_it_reads(self, clip):
        """Statistics before the ReLU, half a range: beyond what the tensor itself would tell."""
        net = sequence(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3))
        model = quantized(net, clip=clip, x=images() * 20)
        relu = site(model, "body.1")
        assert relu.observed == site(model, "body.0").node
        assert relu.quantizer.domain.support == "rectified"
        low, high = relu.quantizer.range()
        assert low == 0
        assert high <= 6.0001


def residual(net, x):
    y = net.a(x).relu()
    return net.fc((net.b(y).relu() + y).mean((2, 3)))


def padded(net, x):
    y = net.a(x).relu()
    return net.fc((net.c(y).relu() + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).mean((2, 3)))


def pooled(net, x):
    y = net.a(x).relu()
    return net.fc((net.b(F.max_pool2d(y, 2)) + F.max_pool2d(y, 2)).mean((2, 3)))


class TestWideResidual:
    def net(self, function):
        return network(
            function,
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(4, 4, 3, padding=1),
            c=nn.Conv2d(4, 8, 3, stride=2, padding=1),
            fc=nn.Linear(8 if function is padded else 4, 2),
        )

    @pytest.mark.parametrize("function", [residual, padded, pooled])
    def test_an_addition_reads_the_wider_values_and_a_layer_the_narrow_ones(self, function):
        model = quantized(self.net(function), wide_residual=True, first=None, last=None)
        narrow, wide = site(model, "relu"), site(model, "relu:wide")
        assert (narrow.quantizer.bits, wide.quantizer.bits) == (4, 8)
        assert (narrow.kind, wide.kind) == ("activation", "residual")
        assert (wide.consumers, len(narrow.consumers)) == (("add",), 1)
        operands = read_by(model, images())
        layer = "c" if function is padded else "b"
        assert torch.equal(narrow.quantizer(operands[layer][0]), operands[layer][0])
        skip = operands["add"][1]
        assert torch.equal(wide.quantizer(skip), skip)
        assert not torch.equal(narrow.quantizer(skip), skip)
        assert reading_float(model, images()) == []

    @pytest.mark.parametrize("function", [residual, padded, pooled])
    def test_without_it_they_share_the_narrow_one(self, function):
        model = quantized(self.net(function), first=None, last=None)
        narrow, operands = site(model, "relu"), read_by(model, images())
        assert not any(s.is_wide for s in model.sites)
        assert torch.equal(narrow.quantizer(operands["add"][1]), operands["add"][1])

    def test_no_second_quantization_where_it_would_not_be_wider(self):
        model = quantized(self.net(residual), wide_residual=True, activations="int8", first=None, last=None)
        assert not any(s.is_wide for s in model.sites)

    def test_is_close_to_the_float_addition(self):
        x, net = images(), self.net(residual)
        errors = {}
        for wide in (True, False):
            model = quantized(net, wide_residual=wide, weights="int16", first="int16", last="int16")
            errors[wide] = float((read_by(model, x)["add"][1] - net.a(x).relu()).abs().mean().detach())
        assert errors[True] < errors[False] / 4


def read_by(model, x):
    """What each node read: label → tensors."""
    read = {}

    class Reader(torch.fx.Interpreter):
        def run_node(self, n):
            read[label(n)] = [self.env[s].clone() for s in n.all_input_nodes if isinstance(self.env[s], torch.Tensor)]
            return super().run_node(n)

    with torch.no_grad():
        Reader(model, garbage_collect_values=False).run(x)
    return read


class TestOpaqueModules:
    def test_inside_a_network(self):
        net = sequence(nn.Conv2d(3, 4, 3), Untraceable(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
        model = quantized(net)
        assert site(model, "body.1").quantizer is not None
        assert "control flow" in site(model, "body.0").reason
        assert "control flow" in site(model, "body.1.gain").reason
        assert reading_float(model, images()) == []

    def test_with_two_results(self):
        def both(net, x):
            a, b = net.odd(net.a(x))
            return net.b(a) + net.b(b)

        net = network(both, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3), odd=UntraceablePair())
        model = quantized(net)
        assert reading_float(model, images()) == []

    def test_operations_with_several_results(self):
        net = network(
            lambda net, x: net.b(net.a(x).max(dim=1, keepdim=True)[0]), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(1, 4, 3)
        )
        assert reading_float(quantized(net), images()) == []

    def test_an_attention_that_cannot_be_written_out(self):
        net = network(
            lambda net, x: net.fc(x + net.attention(x, x, x)[0]),
            attention=nn.MultiheadAttention(16, 4, batch_first=True, add_zero_attn=True),
            fc=nn.Linear(16, 3),
        )
        x = images(4, 6, 16)
        model = quantized(net, x=x)
        assert "written out" in site(model, "attention.in_proj_weight").reason
        assert reading_float(model, x) == []


NETS = {
    "residual": plain,
    "norm": lambda: sequence(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 4, 1)),
    "opaque": lambda: sequence(nn.Conv2d(3, 4, 3), Untraceable(), nn.Conv2d(4, 4, 3)),
    "opaque at the end": lambda: sequence(nn.Conv2d(3, 4, 3), Untraceable()),
    "no layer": lambda: sequence(nn.ReLU(), nn.AvgPool2d(2)),
}


class TestCompleteness:
    @pytest.mark.parametrize("first", [nn.ReLU(), nn.ReLU6(), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))])
    def test_a_second_relu_is_no_tensor_of_its_own(self, first):
        net = sequence(nn.Conv2d(3, 4, 3, padding=1), first, nn.ReLU(), nn.Hardswish(), nn.Conv2d(4, 2, 3))
        model = quantized(net)
        reasons = {s.reason for s in model.sites if s.reason is not None and s.kind == "activation"}
        assert reasons == {"read only by body.3 (Hardswish), computed in float", "network output"}

    @pytest.mark.parametrize("net", NETS.values(), ids=NETS)
    def test_every_tensor_is_a_site_or_keeps_anothers_values(self, net):
        net = net()
        graph, _ = fold(capture(net, images()))
        model = quantized(net)
        names = {site.name for site in model.sites}
        for node in graph.graph.nodes:
            if node.meta["is_tensor"] and node.op != "output" and not keeps_values(graph, node):
                assert label(node) in names


class TestSpellings:
    """The same ReLU, pooling or padding, however the network says it."""

    @pytest.mark.parametrize(
        ("spelling", "ceiling"),
        [
            (lambda x: x.clamp(min=0), None),
            (lambda x: x.clamp(0, 6), 6.0),
            (lambda x: torch.clamp(x, 0.0, 4.0), 4.0),
            (lambda x: torch.clamp_min(x, 0), None),
            (lambda x: F.hardtanh(x, 0.0, 6.0), 6.0),
        ],
    )
    def test_a_clamp_at_zero_is_a_relu(self, spelling, ceiling):
        net = network(lambda net, x: net.b(spelling(net.a(x))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
        model = quantized(net)
        [found] = [s for s in model.sites if s.is_activation and s.consumers == ("b",)]
        assert found.quantizer.domain == Domain("rectified", ceiling)
        assert site(model, "a").carrier == found.name

    @pytest.mark.parametrize("spelling", [lambda x: x.clamp(-1, 1), lambda x: F.hardtanh(x)])
    def test_another_clamp_is_not(self, spelling):
        net = network(lambda net, x: net.b(spelling(net.a(x))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
        [found] = [s for s in quantized(net).sites if s.is_activation and s.consumers == ("b",)]
        assert found.quantizer.domain == Domain("real")

    def test_a_pooling_before_the_relu_is_fused_with_it(self):
        forward = lambda net, x: net.b(F.relu(F.max_pool2d(net.a(x), 2)))  # noqa: E731
        model = quantized(network(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)))
        assert site(model, "a").carrier == "relu"

    @pytest.mark.parametrize(
        "keeping", [nn.Upsample(scale_factor=2), nn.ConstantPad2d(1, 0.0), nn.Dropout(), nn.Identity()]
    )
    def test_modules_that_keep_values_pass_the_grid_on(self, keeping):
        net = network(
            lambda net, x: net.b(net.k(F.relu(net.a(x)))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), k=keeping
        )
        assert site(quantized(net), "relu").consumers == ("b",)

    def test_an_operand_that_lends_its_shape_lends_no_grid(self):
        forward = lambda net, x: net.b(net.a(x).mean((2, 3), keepdim=True).expand_as(F.relu(net.a(x))))  # noqa: E731
        model = quantized(network(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1)))
        assert [s.name for s in model.sites if "b" in s.consumers and s.is_activation] == ["mean"]
        assert not site(model, "b.bias").is_float


class TestOpaqueModulesAreListed:
    class Switch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    def test_even_where_their_result_is_quantized(self):
        parts = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(4, 4, 1), "s": self.Switch()}
        net = network(lambda net, x: net.b(F.relu(net.s(net.a(x)) + net.a(x))), **parts)
        model = quantized(net)
        assert site(model, "s").quantizer is not None
        assert "control flow" in site(model, "s:module").reason
        assert "control flow" in model.summary()

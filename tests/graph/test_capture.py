"""Capture: the graph computes what the model does, without in-place operations, and names what it couldn't enter."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from networks import Untraceable, UntraceablePair, images, network, sequence
from torch import nn
from torchvision.ops import StochasticDepth, stochastic_depth

from pytorch_quantizer import InputError, capture
from pytorch_quantizer.graph.attention import DecomposedAttention
from pytorch_quantizer.graph.normalize import normalize
from pytorch_quantizer.graph.operations import label, layer_nodes


def labels(captured):
    return [label(node) for node in captured.graph.graph.nodes]


def called(captured):
    """What the graph's nodes call."""
    return [node.target for node in captured.graph.graph.nodes if node.op != "placeholder"]


def assert_captures(net, x, tolerance=0.0):
    """The graph equals the model, also on data it was not captured with, and leaves its input alone."""
    captured = capture(net, x[:2])
    expected = net(x.clone())
    given = x.clone()
    torch.testing.assert_close(captured.graph(given), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(given, x, rtol=0, atol=0)
    return captured


IN_PLACE = {
    "x.relu_()": lambda net, x: net.conv(x).relu_(),
    "F.relu inplace": lambda net, x: F.relu(net.conv(x), inplace=True),
    "F.relu positional": lambda net, x: F.relu(net.conv(x), True),
    "F.hardswish inplace": lambda net, x: F.hardswish(net.conv(x), inplace=True),
    "torch.relu_": lambda net, x: torch.relu_(net.conv(x)),
    "torch.sigmoid_": lambda net, x: torch.sigmoid_(net.conv(x)),
    "module": lambda net, x: net.relu(net.conv(x)),
    "add_": lambda net, x: net.conv(x).add_(1),
    "+=": lambda net, x: plus_equals(net.conv(x)),
    "clamp_": lambda net, x: net.conv(x).clamp_(min=0),
    "nested": lambda net, x: net.relu(net.conv(x).mul_(2)).add_(net.conv(x)),
    # A tensor that is overwritten and read again: whoever reads it later reads the new values.
    "read later": lambda net, x: read_later(net.conv(x), lambda t: t.relu_()),
    "read later, module": lambda net, x: read_later(net.conv(x), net.relu),
    "read later, function": lambda net, x: read_later(net.conv(x), lambda t: F.relu(t, inplace=True)),
    "read later, torch.relu_": lambda net, x: read_later(net.conv(x), torch.relu_),
    "read before": lambda net, x: read_before(net.conv(x), net.relu),
    "the input": lambda net, x: net.conv(net.relu(x.clone())),
}


def plus_equals(x):
    x += 1
    return x


def read_later(x, overwrite):
    overwrite(x)
    return x * 3


def read_before(x, overwrite):
    before = x * 1.0
    return before + overwrite(x)


class TestInPlace:
    @pytest.mark.parametrize("function", IN_PLACE.values(), ids=IN_PLACE)
    def test_the_same_without_overwriting(self, function):
        net = network(function, conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU(inplace=True))
        captured = assert_captures(net, images())
        for node in captured.graph.graph.nodes:
            name = node.target if isinstance(node.target, str) else node.target.__name__
            assert not name.endswith("_") or name.endswith("__"), f"{node.format_node()} overwrites"
            assert not node.kwargs.get("inplace")
        assert not any(getattr(module, "inplace", False) for module in captured.graph.modules())

    def test_each_intermediate_keeps_its_values(self):
        """What calibration sees of a tensor is what the tensor was when it was produced."""
        net = network(lambda net, x: net.relu(net.conv(x)), conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU(inplace=True))
        captured, seen = capture(net, images()), {}

        class Keep(torch.fx.Interpreter):
            def run_node(self, n):
                seen[n.name] = super().run_node(n)
                return seen[n.name]

        Keep(captured.graph).run(images())
        assert seen["conv"].min() < 0

    def test_the_model_keeps_its_own(self):
        net = network(IN_PLACE["module"], conv=nn.Conv2d(3, 4, 3), relu=nn.ReLU(inplace=True))
        capture(net, images())
        assert net.relu.inplace


CALLS = itertools.count(1)
UNFAITHFUL = {
    "through a view": lambda net, x: through_a_view(net.conv(x)),
    "another number each time": lambda net, x: net.conv(x) * next(CALLS),
}


class TestFaithfulness:
    @pytest.mark.parametrize("function", UNFAITHFUL.values(), ids=UNFAITHFUL)
    def test_a_graph_that_computes_something_else_is_refused(self, function):
        net = network(function, conv=nn.Conv2d(3, 4, 3))
        with pytest.raises(InputError, match=r"the traced graph of Network is off by .* on the example"):
            capture(net, images())

    def test_nan_from_the_model_itself_is_not_the_graphs_fault(self):
        net = network(lambda net, x: net.conv(x).log(), conv=nn.Conv2d(3, 4, 3))
        assert capture(net, images()).graph(images()).isnan().any()

    def test_infinity_from_the_model_itself(self):
        net = network(lambda net, x: net.conv(x).relu() / 0, conv=nn.Conv2d(3, 4, 3))
        assert capture(net, images()).graph(images()).isinf().any()

    @pytest.mark.parametrize("kind", [tuple, list])
    def test_several_results(self, kind):
        net = network(lambda net, x: kind((net.conv(x), x)), conv=nn.Conv2d(3, 4, 3))
        ours, theirs = capture(net, images()).graph(images()), net(images())
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def test_results_by_name(self):
        net = network(lambda net, x: {"out": net.conv(x)}, conv=nn.Conv2d(3, 4, 3))
        assert torch.equal(capture(net, images()).graph(images())["out"], net(images())["out"])


def through_a_view(x):
    x.flatten(1).relu_()
    return x


class TestOpaque:
    def net(self):
        return network(
            lambda net, x: net.fc(net.odd(net.conv(x)).mean((2, 3))),
            conv=nn.Conv2d(3, 4, 3),
            odd=Untraceable(),
            fc=nn.Linear(4, 2),
        )

    def test_is_listed_with_the_reason(self):
        captured = assert_captures(self.net(), images())
        assert list(captured.opaque) == ["odd"]
        assert "control flow" in captured.opaque["odd"]
        assert "odd" in called(captured)

    def test_strict_makes_it_an_error(self):
        with pytest.raises(
            InputError, match=r"--strict: 1 module\(s\) can't be captured; the first is 'odd': .*control"
        ):
            capture(self.net(), images(), strict=True)
        assert not capture(sequence(nn.Conv2d(3, 4, 3)), images(), strict=True).opaque

    def test_only_the_innermost_is_opaque(self):
        inner = nn.Sequential(nn.Conv2d(4, 4, 1), Untraceable())
        captured = assert_captures(sequence(nn.Conv2d(3, 4, 3), nn.Sequential(inner, nn.ReLU())), images())
        assert list(captured.opaque) == ["body.1.0.1"]
        assert [label(node) for node, _ in layer_nodes(captured.graph)] == ["body.0", "body.1.0.0"]

    def test_several(self):
        captured = assert_captures(sequence(nn.Conv2d(3, 4, 3), Untraceable(), nn.ReLU(), Untraceable()), images())
        assert list(captured.opaque) == ["body.1", "body.3"]

    def test_with_two_results(self):
        def both(net, x):
            a, b = net.odd(net.conv(x))
            return a + b

        captured = assert_captures(network(both, conv=nn.Conv2d(3, 4, 3), odd=UntraceablePair()), images())
        assert list(captured.opaque) == ["odd"]

    def test_the_network_itself_cannot_be(self):
        net = network(lambda net, x: net.conv(x) if x.sum() > 0 else x, conv=nn.Conv2d(3, 4, 3))
        with pytest.raises(InputError, match=r"Network.forward can't be traced by torch.fx: .*submodule"):
            capture(net, images())


FUNCTIONAL = {
    "conv1d": (F.conv1d, (6, 3, 3), (2, 3, 9), {"stride": 2, "padding": 1}),
    "conv2d": (F.conv2d, (6, 3, 3, 3), (2, 3, 9, 9), {}),
    "conv2d grouped": (F.conv2d, (6, 1, 3, 3), (2, 3, 9, 9), {"groups": 3, "dilation": 2, "padding": (1, 2)}),
    "conv2d same": (F.conv2d, (6, 3, 3, 3), (2, 3, 9, 9), {"padding": "same"}),
    "conv3d": (F.conv3d, (6, 3, 2, 2, 2), (2, 3, 5, 5, 5), {"stride": (1, 2, 1)}),
    "linear": (F.linear, (6, 3), (2, 5, 3), {}),
}


class TestFunctionalLayers:
    @pytest.mark.parametrize(("function", "weight", "shape", "options"), FUNCTIONAL.values(), ids=FUNCTIONAL)
    @pytest.mark.parametrize("bias", [True, False])
    def test_become_modules(self, function, weight, shape, options, bias):
        parts = {"w": nn.Parameter(images(*weight))} | ({"b": nn.Parameter(images(6))} if bias else {})
        net = network(lambda net, x: function(x, net.w, getattr(net, "b", None), **options), **parts)
        captured = assert_captures(net, images(*shape))
        [(_, layer)] = layer_nodes(captured.graph)
        assert type(layer).__name__.lower() == function.__name__
        assert torch.equal(layer.weight, net.w)
        assert (layer.bias is not None) == bias

    def test_a_custom_layer_with_its_own_forward(self):
        class Scaled(nn.Conv2d):
            def forward(self, x):
                return self._conv_forward(x, self.weight, self.bias)

        captured = assert_captures(sequence(Scaled(3, 4, 3, padding=1, groups=1)), images())
        assert len(list(layer_nodes(captured.graph))) == 1

    def test_a_weight_computed_from_parameters_is_computed_once(self):
        net = network(
            lambda net, x: F.conv2d(x, net.w - net.w.mean((1, 2, 3), keepdim=True)),
            w=nn.Parameter(images(4, 3, 3, 3)),
        )
        [(_, layer)] = layer_nodes(assert_captures(net, images()).graph)
        assert torch.equal(layer.weight, net.w - net.w.mean((1, 2, 3), keepdim=True))

    def test_weight_norm_becomes_a_plain_layer(self):
        net = sequence(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)))
        captured = assert_captures(net, images())
        [(_, layer)] = layer_nodes(captured.graph)
        assert torch.allclose(layer.weight, net.body[0].weight)
        assert len(list(captured.graph.parameters())) == 2

    @pytest.mark.parametrize(("groups", "dims"), [(1, 1), (1, 2), (2, 2), (1, 3)])
    def test_transposed_convolutions(self, groups, dims):
        function = getattr(F, f"conv_transpose{dims}d")
        weight = nn.Parameter(images(4, 6 // groups, *[3] * dims))
        net = network(lambda net, x: function(x, net.w, None, 2, 1, 1, groups), w=weight)
        [(_, layer)] = layer_nodes(assert_captures(net, images(2, 4, *[5] * dims)).graph)
        assert layer.out_channels == 6

    def test_a_weight_computed_from_the_images_stays_a_function(self):
        net = network(lambda net, x: F.conv2d(x, net.w * x.mean()), w=nn.Parameter(images(4, 3, 3, 3)))
        assert not list(layer_nodes(assert_captures(net, images()).graph))


class TestWhatCannotBeCaptured:
    def test_two_inputs(self):
        with pytest.raises(InputError, match=r"takes 2 inputs \(x, y\)"):
            capture(TwoInputs(), images())

    def test_wrappers_name_their_remedy(self):
        with pytest.raises(InputError, match=r"model\.module"):
            capture(nn.DataParallel(nn.Conv2d(3, 4, 1)), images())
        with pytest.raises(InputError, match="eager model"):
            capture(torch.jit.script(nn.Conv2d(3, 4, 1)), images())

    def test_images_that_do_not_fit(self):
        with pytest.raises(InputError, match=r"images of shape \[N, 5, 8, 8\]"):
            capture(sequence(nn.Conv2d(3, 4, 1)), images(2, 5, 8, 8))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


SETTINGS = [
    {"batch_first": batch_first, "bias": bias, "need_weights": need, "average": average, "mask": mask}
    for batch_first in (True, False)
    for bias, need, average in ((True, True, True), (True, False, True), (False, True, False))
    for mask in (None, "float", "bool", "per head")
]


class TestAttention:
    @pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
    @pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
    def test_equals_the_original(self, settings, cross):
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(16, 4, bias=settings["bias"], batch_first=settings["batch_first"]).eval()
        length = 7 if settings["batch_first"] else 3  # the same tensors read either way round
        mask = self.mask(settings["mask"], length, heads=4 * (10 - length))
        query, key, value = (images(3, 7, 16, seed=seed) for seed in ((1, 2, 3) if cross else (1, 1, 1)))
        if not cross:
            key = value = query
        options = {"need_weights": settings["need_weights"], "average_attn_weights": settings["average"]}
        expected = attention(query, key, value, attn_mask=mask, **options)
        ours = DecomposedAttention(attention).eval()(query, key, value, attn_mask=mask, **options)
        torch.testing.assert_close(ours[0], expected[0], rtol=0, atol=1e-5)
        assert (ours[1] is None) == (expected[1] is None) == (not settings["need_weights"])
        if ours[1] is not None:
            torch.testing.assert_close(ours[1], expected[1], rtol=0, atol=1e-5)

    def mask(self, kind, length, heads):
        generator = torch.Generator().manual_seed(5)
        if kind == "float":
            return torch.randn(length, length, generator=generator)
        if kind == "bool":
            return torch.ones(length, length).triu(1).bool()
        return torch.randn(heads, length, length, generator=generator) if kind == "per head" else None

    def test_is_written_out_in_the_graph(self):
        net = network(
            lambda net, x: net.attention(x, x, x)[0], attention=nn.MultiheadAttention(16, 4, batch_first=True)
        )
        captured = assert_captures(net, images(2, 5, 16), tolerance=1e-5)
        assert not captured.opaque
        assert [label(node) for node, _ in layer_nodes(captured.graph)] == ["attention.in_proj", "attention.out_proj"]
        assert labels(captured).count("attention.matmul") == 1

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"kdim": 8, "vdim": 8}, "key and value have other widths than the query"),
            ({"add_bias_kv": True}, "appends a bias or zeros"),
            ({"add_zero_attn": True}, "appends a bias or zeros"),
        ],
    )
    def test_is_listed_where_it_cannot_be(self, options, reason):
        attention = nn.MultiheadAttention(16, 4, batch_first=True, **options)
        net = network(
            lambda net, x: net.attention(x, x[..., : attention.kdim], x[..., : attention.vdim])[0], attention=attention
        )
        captured = assert_captures(net, images(2, 5, 16))
        assert list(captured.opaque) == ["attention"]
        assert reason in captured.opaque["attention"]
        with pytest.raises(InputError, match=reason):
            capture(net, images(2, 5, 16), strict=True)

    def test_unsupported_calls_are_listed(self):
        padding = torch.tensor([[False, False, False, True, True]] * 2)
        net = network(
            lambda net, x: net.attention(x, x, x, key_padding_mask=net.padding)[0],
            attention=nn.MultiheadAttention(16, 4, batch_first=True),
            padding=padding,
        )
        captured = assert_captures(net, images(2, 5, 16))
        assert "key_padding_mask" in captured.opaque["attention"]

    @pytest.mark.filterwarnings("ignore:.*enable_nested_tensor")
    def test_inside_torchs_own_transformer_blocks(self):
        net = sequence(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True))
        assert_captures(net, images(2, 5, 16), tolerance=1e-5)

    def test_hidden_scores_are_not_added(self):
        """−inf in a causal mask must not become a tensor to quantize."""
        mask = nn.Transformer.generate_square_subsequent_mask(5)
        net = network(
            lambda net, x: net.attention(x, x, x, attn_mask=net.mask)[0],
            attention=nn.MultiheadAttention(16, 4, batch_first=True),
            mask=mask,
        )
        captured = assert_captures(net, images(2, 5, 16), tolerance=1e-5)
        assert not captured.opaque
        constants = [node for node in captured.graph.graph.nodes if node.op == "get_attr" and node.meta["is_tensor"]]
        assert all(getattr(captured.graph, node.target).isfinite().all() for node in constants)


class TestBadWeights:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("where", ["body.0.weight", "body.1.running_var"])
    def test_are_named_and_counted(self, value, where):
        net = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        net.state_dict()[where].view(-1)[:2] = value
        with pytest.raises(InputError, match=rf"{where} holds 2 NaN or infinite value\(s\) of \d+; load sound weights"):
            capture(net, images())


class TestTheModelItself:
    def test_is_untouched(self):
        net = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5))
        before, output = copy.deepcopy(net.state_dict()), net(images())
        captured = capture(net, images())
        captured.graph.get_submodule("body.0").weight.data.zero_()
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        assert torch.equal(net(images()), output)

    def test_keeps_each_modules_mode(self):
        net = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
        net.body[1].eval()  # a frozen norm
        modes = [module.training for module in net.modules()]
        captured = capture(net, images())
        assert [module.training for module in net.modules()] == modes
        assert not any(module.training for module in captured.graph.modules())

    def test_is_captured_in_eval_mode(self):
        net = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        expected = net(images())
        assert torch.equal(capture(net.train(), images()).graph(images()), expected)

    def test_what_does_nothing_in_eval_mode_is_gone(self):
        net = sequence(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Identity(), StochasticDepth(0.5, "row"))
        captured = capture(net, images())
        assert called(captured) == ["body.0", "output"]
        assert torch.equal(captured.graph(images()), net(images()))

    def test_stochastic_depth_that_is_always_on_stays(self):
        graph = torch.fx.Graph()
        graph.output(graph.call_function(stochastic_depth, (graph.placeholder("x"), 0.5, "row", True)))
        normalized = normalize(torch.fx.GraphModule(nn.Module(), graph))
        assert stochastic_depth in [node.target for node in normalized.graph.nodes]


class TestLabels:
    def test_are_unique_and_tell_where_an_operation_stands(self):
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 3, 1)

            def forward(self, x):
                return torch.relu(self.conv(x) + x) + 1

        shared = Block()
        captured = capture(sequence(Block(), shared, shared), images())
        names = labels(captured)
        assert len(set(names)) == len(names)
        assert names[1:5] == ["body.0.conv", "body.0.add", "body.0.relu", "body.0.add_1"]
        assert {"body.1.conv", "body.1.conv_1"} <= set(names)

    def test_without_an_example_every_node_counts_as_a_tensor(self):
        captured = capture(sequence(nn.Conv2d(3, 4, 3)))
        assert all(node.meta["is_tensor"] for node in captured.graph.graph.nodes)

    def test_an_example_tells_tensors_from_sizes(self):
        net = network(lambda net, x: net.conv(x).view(x.size(0), -1), conv=nn.Conv2d(3, 4, 3))
        marked = {label(node): node.meta["is_tensor"] for node in capture(net, images()).graph.graph.nodes}
        assert marked["conv"] is marked["view"] is True
        assert marked["size"] is False


class TestOptionalArguments:
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x, mask=None, features=False, power=1):
            y = self.conv(x)
            if mask is not None:
                y = y * mask
            return y if features else y.mean((2, 3)) * power

    def test_the_graph_is_of_the_call_without_them(self):
        model, x = self.Masked().eval(), torch.randn(2, 3, 8, 8)
        graph = capture(model, x).graph
        assert torch.equal(graph(x), model(x))
        assert [node.name for node in graph.graph.nodes if node.op == "placeholder"] == ["x"]

"""Equalization: the network computes what it did, and the ranges of neighbouring layers' channels agree afterwards."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import images, network, sequence
from torch import nn

from pytorch_quantizer import IntQuantizer, Recipe, capture, fold, quantize
from pytorch_quantizer.graph.channel_clipped_relu import ChannelClippedReLU
from pytorch_quantizer.graph.equalize import TOLERANCE, equalize
from pytorch_quantizer.graph.operations import is_nonnegative, is_relu, keeps_values, label, layer_nodes, relu_ceiling
from pytorch_quantizer.models import bundled_checkpoint, create_model

UNEVEN = 3.0  # deviation of the logarithm of the channels' ranges


def folded(net, x):
    return fold(capture(net, x))[0]


def uneven(net, seed=0):
    """The net with channels of wildly different ranges, and biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if getattr(module, "weight", None) is not None and module.weight.dim() > 1:
            axis = int(isinstance(module, nn.modules.conv._ConvTransposeNd))
            shape = [-1 if dim == axis else 1 for dim in range(module.weight.dim())]
            spread = torch.exp(UNEVEN / 2 * torch.randn(module.weight.shape[axis], generator=generator))
            module.weight.data *= spread.reshape(shape)
    return net


def check(net, x, expected_pairs, tolerance=1e-5):
    """Equalize; the outputs must agree in float64 arithmetic up to the rounding of the weights to float32."""
    graph = folded(net, x)
    before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    equalized, pairs = equalize(graph)
    assert pairs == expected_pairs
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.state_dict().items())
    expected, got = graph(x), equalized(x)
    assert got.dtype == expected.dtype
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()
    return graph, equalized


def assert_even(graph, pairs, groups=1):
    """max|w| of each output channel of the first is that of the second's input channel, by name; not grouped."""
    layers = {label(node): layer for node, layer in layer_nodes(graph)}
    for pair in pairs:
        first, second = (layers[name].weight.detach().abs() for name in pair.split(" → "))
        r1 = first.flatten(1).amax(1)
        if isinstance(layers[pair.split(" → ")[1]], nn.Linear):
            r2 = second.reshape(len(second), len(first), -1).amax((0, 2))
        elif second.shape[1] == 1:  # depthwise
            r2 = second.flatten(1).amax(1)
        else:
            r2 = second.transpose(0, 1).flatten(1).amax(1)
        assert torch.allclose(r1, r2, rtol=3 * TOLERANCE), pair


def vgg():
    return sequence(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(48, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5)),
    )


class InvertedResidual(nn.Module):
    def __init__(self, channels, hidden, out, relu=nn.ReLU6):
        super().__init__()
        self.residual = channels == out
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), relu()),
            *(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), relu()),
            *(nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)),
        )

    def forward(self, x):
        return x + self.body(x) if self.residual else self.body(x)


def mobile(relu=nn.ReLU6):
    return network(
        lambda net, x: net.head(net.last(net.blocks(net.stem(x))).mean([2, 3])),
        stem=nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), relu()),
        blocks=nn.Sequential(InvertedResidual(6, 12, 6, relu), InvertedResidual(6, 12, 8, relu)),
        last=nn.Sequential(nn.Conv2d(8, 20, 1, bias=False), nn.BatchNorm2d(20), relu()),
        head=nn.Linear(20, 5),
    )


MOBILE_PAIRS = [
    "blocks.0.body.0 → blocks.0.body.3",
    "blocks.0.body.3 → blocks.0.body.6",
    "blocks.1.body.0 → blocks.1.body.3",
    "blocks.1.body.3 → blocks.1.body.6",
    "blocks.1.body.6 → last.0",
    "last.0 → head",
]
VGG_PAIRS = ["body.0 → body.2", "body.2 → body.6", "body.6 → body.10", "body.10 → body.13"]


class TestNetworks:
    @pytest.mark.parametrize("seed", range(4))
    def test_vgg(self, seed):
        _, equalized = check(uneven(vgg(), seed), images(seed=seed), VGG_PAIRS)
        assert_even(equalized, VGG_PAIRS)

    @pytest.mark.parametrize("seed", range(4))
    def test_mobile(self, seed):
        _, equalized = check(uneven(mobile(), seed), images(seed=seed) * 3, MOBILE_PAIRS)
        assert_even(equalized, MOBILE_PAIRS)

    def test_mobile_with_relu(self):
        check(uneven(mobile(nn.ReLU)), images(), MOBILE_PAIRS)

    def test_the_resnet_of_the_digits(self):
        net = create_model("resnet20", in_channels=1, checkpoint=bundled_checkpoint("digits_resnet20"))
        _, equalized = check(net, images(8, 1, 8, 8), DIGITS_PAIRS)
        assert_even(equalized, DIGITS_PAIRS)
        assert len(DIGITS_PAIRS) == 9

    def test_nothing_to_do(self):
        check(sequence(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3)), images(), [], tolerance=0)


DIGITS_PAIRS = [f"layer{i}.{j}.conv1 → layer{i}.{j}.conv2" for i in (1, 2, 3) for j in (0, 1, 2)]


PAIRS = {
    "nothing between": (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)),
    "without biases": (nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False)),
    "relu6": (nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 5, 3)),
    "hardtanh": (nn.Conv2d(3, 4, 3), nn.Hardtanh(0, 0.5), nn.Conv2d(4, 5, 3)),
    "leaky": (nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 5, 3)),
    "prelu": (nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Conv2d(4, 5, 3)),
    "grouped first": (nn.Conv2d(3, 6, 3, groups=3), nn.ReLU6(), nn.Conv2d(6, 5, 3)),
    "grouped second": (nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 6, 3, groups=2)),
    "both grouped": (nn.Conv2d(3, 6, 3, groups=3), nn.ReLU6(), nn.Conv2d(6, 4, 3, groups=2)),
    "depthwise, two each": (nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 8, 3, groups=4)),
    "transposed first": (nn.ConvTranspose2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 5, 3)),
    "transposed second": (nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.ConvTranspose2d(4, 5, 3, stride=2)),
    "both transposed, grouped": (
        nn.ConvTranspose2d(3, 6, 3, groups=3),
        nn.ReLU6(),
        nn.ConvTranspose2d(6, 4, 3, groups=2, stride=2),
    ),
    "max-pool": (nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU6(), nn.Conv2d(4, 5, 3)),
    "average pool": (nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.AvgPool2d(2, padding=1), nn.Conv2d(4, 5, 3)),
    "padding": (nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.ReflectionPad2d(2), nn.Conv2d(4, 5, 3, padding=1)),
    "two saturating": (nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Hardtanh(0, 1), nn.Conv2d(4, 5, 3)),
    "flattened": (nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(144, 5)),
    "flattened first": (nn.Conv2d(3, 4, 3), nn.Flatten(), nn.ReLU6(), nn.Linear(144, 5)),
    "pooled to a point": (nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU6(), nn.Linear(4, 5)),
}


class TestPairs:
    @pytest.mark.parametrize("modules", PAIRS.values(), ids=PAIRS)
    def test_compute_what_they_did(self, modules):
        net = uneven(sequence(*copy.deepcopy(modules)))
        graph, equalized = check(net, 2 * images(), [f"body.0 → body.{len(modules) - 1}"])
        moved = equalized.get_submodule("body.0").weight / graph.get_submodule("body.0").weight
        assert moved.max() / moved.min() > 2

    @pytest.mark.parametrize(
        "modules", [(nn.Linear(6, 8), nn.ReLU6(), nn.Linear(8, 5)), (nn.Linear(6, 8), nn.Linear(8, 5))]
    )
    @pytest.mark.parametrize("shape", [(7, 6), (4, 3, 6)])
    def test_of_linear_layers(self, modules, shape):
        net = uneven(sequence(*copy.deepcopy(modules)))
        _, equalized = check(net, 4 * images(*shape), [f"body.0 → body.{len(modules) - 1}"])
        assert_even(equalized, [f"body.0 → body.{len(modules) - 1}"])

    @pytest.mark.parametrize(
        "flatten", [lambda x: torch.flatten(x, 1), lambda x: x.view(x.size(0), -1), lambda x: x.reshape(x.shape[0], -1)]
    )
    def test_flattened_by_a_function(self, flatten):
        net = network(lambda net, x: net.b(flatten(F.relu6(net.a(x)))), a=nn.Conv2d(3, 4, 3), b=nn.Linear(4 * 36, 5))
        _, equalized = check(uneven(net), images(), ["a → b"])
        assert_even(equalized, ["a → b"])

    def test_scale_is_the_papers(self):
        """r1 = 8, r2 = 2: s = √16 / 2 = 2."""
        net = sequence(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
        for layer, weight in ((net.body[0], [8.0, 1.0]), (net.body[2], [2.0, -1.0])):
            layer.weight.data = torch.tensor(weight).reshape(layer.weight.shape)
        net.body[0].bias.data = torch.tensor([3.0, 5.0])
        _, equalized = check(net, images(2, 1, 4, 4), ["body.0 → body.2"])
        first, second = equalized.get_submodule("body.0"), equalized.get_submodule("body.2")
        assert torch.allclose(first.weight.flatten(), torch.tensor([4.0, 1.0]))
        assert torch.allclose(second.weight.flatten(), torch.tensor([4.0, -1.0]))
        assert torch.allclose(first.bias, torch.tensor([1.5, 5.0]))
        assert torch.equal(second.bias, net.body[2].bias)

    @pytest.mark.parametrize("side", ["first", "second"])
    def test_channels_of_zeros_are_left(self, side):
        net = uneven(sequence(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
        zeroed = net.body[0].weight.data[2] if side == "first" else net.body[2].weight.data[:, 2]
        zeroed.zero_()
        graph, equalized = check(net, images(), ["body.0 → body.2", "body.2 → body.4"])
        first, was = equalized.get_submodule("body.0"), graph.get_submodule("body.0")
        assert torch.equal(first.weight[2], was.weight[2])
        assert torch.equal(first.bias[2], was.bias[2])
        assert first.weight.isfinite().all()
        assert not torch.equal(first.weight[1], was.weight[1])

    def test_layers_of_zeros(self):
        net = sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        net.body[0].weight.data.zero_()
        check(net, images(), ["body.0 → body.2"], tolerance=0)

    def test_tied_weights_come_apart(self):
        a, b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        net = network(lambda net, x: net.b(net.a(x).relu()), a=a, b=b)
        b.weight = a.weight
        check(net, images(), ["a → b"])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_keep_their_dtype(self, dtype):
        net = uneven(mobile()).to(dtype)
        _, equalized = check(net, images().to(dtype), MOBILE_PAIRS, 1e-12 if dtype == torch.float64 else 0.3)
        assert {parameter.dtype for parameter in equalized.parameters()} == {dtype}


def two_readers(net, x):
    y = net.a(x)
    return net.b(y) + y


def output_too(net, x):
    y = net.a(x).relu()
    return net.b(y).mean() + y.mean()


APART = {
    "others read it": two_readers,
    "also the output": output_too,
    "called twice": lambda net, x: net.b(net.a(net.a(x))),
    "second called twice": lambda net, x: net.b(net.b(net.a(x))),
    "not homogeneous": lambda net, x: net.b(torch.sigmoid(net.a(x))),
    "a constant added": lambda net, x: net.b(net.a(x) + 1),
    "clipped below": lambda net, x: net.b(torch.clamp(net.a(x), -1, 1)),
    "channels flipped": lambda net, x: net.b(net.a(x).flip(1)),
    "channels transposed": lambda net, x: net.b(net.a(x).transpose(1, 2)),
    "channels averaged": lambda net, x: net.b(net.a(x).mean(1, keepdim=True).expand(-1, 3, -1, -1)),
    "bias read elsewhere": lambda net, x: net.b(net.a(x)) * net.a.bias,
}


class TestLeftAlone:
    @pytest.mark.parametrize("function", APART.values(), ids=APART)
    def test_where_it_would_not_be_exact(self, function):
        net = network(function, a=nn.Conv2d(3, 3, 1), b=nn.Conv2d(3, 3, 1))
        x = images(4, 3, 3, 3)
        check(uneven(net), x, [], tolerance=0)

    def test_features_of_places(self):
        """A linear layer over the last dimension of [N, C, H, W] doesn't read channels."""
        check(sequence(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Linear(8, 4)), images(), [], tolerance=0)

    def test_pooled_features(self):
        """Max-pooling over [N, T, F] mixes a linear layer's channels."""
        check(sequence(nn.Linear(6, 8), nn.MaxPool1d(2), nn.Linear(4, 2)), images(2, 3, 6), [], tolerance=0)


class TestSaturation:
    def test_ceilings_follow_the_scales(self):
        net = uneven(sequence(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 5, 3)))
        graph, equalized = check(net, 5 * images(), ["body.0 → body.2"])
        [relu] = [node for node in equalized.graph.nodes if is_relu(equalized, node)]
        module = equalized.get_submodule(relu.target)
        scales = graph.get_submodule("body.0").bias / equalized.get_submodule("body.0").bias
        assert torch.allclose(module.ceiling, 6 / scales)
        assert relu_ceiling(equalized, relu) == module.ceiling.max()
        assert is_nonnegative(equalized, relu)
        assert not keeps_values(equalized, relu)
        assert (label(relu), relu.meta["shape"]) == ("body.1", (4, 4, 6, 6))

    def test_a_second_time_changes_nothing(self):
        """Depthwise, so that one pass leaves ceilings of each channel for the next to follow."""
        net = uneven(mobile(), 3)
        graph = fold(capture(net, images()))[0]
        once, _ = equalize(graph)
        for weight in (once.get_submodule(name) for name, m in list(once.named_modules()) if hasattr(m, "groups")):
            with torch.no_grad():
                weight.weight.mul_(torch.rand(len(weight.weight)).add(0.1).view(-1, 1, 1, 1))
        twice, pairs = equalize(once)
        assert pairs
        x = 3 * images()
        assert torch.allclose(twice(x), once(x), rtol=1e-4, atol=1e-4 * float(once(x).abs().max()))

    def test_the_range_is_that_of_the_tensor_itself(self):
        net = uneven(sequence(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 5, 3)))
        x = 5 * images()
        model = quantize(net, Recipe(equalize=True), x, progress=False)
        graph, _ = equalize(fold(capture(net, x))[0])
        relu = graph.get_submodule("body.0")(x)
        [ceiling] = [m.ceiling for m in graph.modules() if hasattr(m, "ceiling")]
        largest = torch.minimum(relu.clamp(min=0), ceiling.view(-1, 1, 1)).max()
        [site] = [site for site in model.sites if site.name == "body.1"]
        assert float(site.quantizer.range()[1]) == pytest.approx(float(largest), rel=1e-5)
        assert largest < 0.9 * ceiling.max()

    def test_a_shared_relu6_gets_ceilings_for_each_use(self):
        net = network(
            lambda net, x: net.c(net.relu(net.b(net.relu(net.a(x))))),
            **{name: nn.Conv2d(3, 3, 3) for name in "abc"},
            relu=nn.ReLU6(),
        )
        check(uneven(net), 5 * images(), ["a → b", "b → c"])

    @pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4), (5, 3, 4, 2), (2, 5, 3, 2, 2)])
    @pytest.mark.parametrize("axis", [1, -1])
    def test_module(self, shape, axis):
        x = 3 * images(*shape)
        ceiling = torch.rand(shape[axis]) + 0.5
        got = ChannelClippedReLU(ceiling, axis)(x)
        expected = [part.clamp(0, float(top)) for part, top in zip(x.unbind(axis), ceiling, strict=True)]
        assert torch.equal(got, torch.stack(expected, axis))

    def test_module_keeps_nan_and_dtype(self):
        got = ChannelClippedReLU(torch.tensor([2.0]))(torch.tensor([[float("nan")]], dtype=torch.float16))
        assert got.isnan()
        assert got.dtype == torch.float16


def test_the_norms_moments_follow_the_scales():
    """What the folded norm says of a layer's outputs still holds behind it: mean β / s, deviation |γ| / s."""
    net = uneven(sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)))
    graph, equalized = check(net, images(), ["body.0 → body.3"])
    known = [[node.meta.get("normal") for node, _ in layer_nodes(g)] for g in (graph, equalized)]
    scales = (graph.get_submodule("body.0").bias / equalized.get_submodule("body.0").bias).double()
    for before, after in zip(known[0][0], known[1][0], strict=True):
        assert torch.allclose(after, before / scales, rtol=1e-5)
    assert all(map(torch.equal, known[0][1], known[1][1]))


def noise_ratio(graph, x):
    """Signal to noise, dB, of the outputs with every weight on one 8-bit grid a tensor."""
    quantized = copy.deepcopy(graph)
    for _, layer in layer_nodes(quantized):
        layer.weight.data = IntQuantizer(8).fit(layer.weight.data)(layer.weight.data)
    exact = graph(x).detach().double()
    return float(10 * torch.log10(exact.square().mean() / (quantized(x).detach().double() - exact).square().mean()))


def test_per_tensor_weights_lose_less():
    """The demonstration of Nagel et al.: channels of wildly different ranges, one 8-bit grid for each weight."""
    net, x = uneven(mobile()), images()
    graph, equalized = check(net, x, MOBILE_PAIRS)
    assert noise_ratio(equalized, x) > noise_ratio(graph, x) + 6

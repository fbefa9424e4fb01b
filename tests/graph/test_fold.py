"""Folding: exact against the float64 model wherever it is done, and with the reason where it isn't."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import images, network, sequence
from torch import nn

from pytorch_quantizer import capture, fold
from pytorch_quantizer.graph.operations import BATCH_NORMS


def folded(net, x):
    """(graph, the norms that stayed → why), the graph checked against the model in float64."""
    expected = copy.deepcopy(net).double()(x.double()).detach()
    graph, kept = fold(capture(net, x))
    got = graph(x).detach()
    assert got.shape == expected.shape
    assert (got.double() - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert sum(isinstance(module, BATCH_NORMS) for module in graph.modules()) == len(kept)
    return graph, kept


LAYERS = {
    "conv1d": (nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d, (3, 6, 9)),
    "conv2d": (nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d, (3, 6, 9, 7)),
    "conv3d": (nn.Conv3d(6, 8, 2), nn.BatchNorm3d, (3, 6, 4, 5, 3)),
    "without a bias": (nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d, (3, 6, 9, 7)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d, (3, 6, 9, 7)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6, padding=1), nn.BatchNorm2d, (3, 6, 9, 7)),
    "depthwise, two each": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d, (3, 6, 9, 7)),
    "dilated and strided": (nn.Conv2d(6, 8, 3, dilation=2, stride=2, padding=2), nn.BatchNorm2d, (3, 6, 9, 7)),
    "same": (nn.Conv2d(6, 8, 3, padding="same"), nn.BatchNorm2d, (3, 6, 9, 7)),
    "reflected": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d, (3, 6, 9, 7)),
    "transposed1d": (nn.ConvTranspose1d(6, 8, 3, stride=2), nn.BatchNorm1d, (3, 6, 9)),
    "transposed2d": (nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d, (3, 6, 5, 4)),
    "transposed2d, grouped": (nn.ConvTranspose2d(6, 8, 3, groups=2, bias=False), nn.BatchNorm2d, (3, 6, 5, 4)),
    "transposed3d": (nn.ConvTranspose3d(6, 8, 2), nn.BatchNorm3d, (3, 6, 3, 3, 3)),
    "linear": (nn.Linear(6, 8), nn.BatchNorm1d, (3, 6)),
    "linear without a bias": (nn.Linear(6, 8, bias=False), nn.BatchNorm1d, (3, 6)),
}
OPTIONS = {
    "plain": {},
    "affine=False": {"affine": False},
    "eps": {"eps": 0.1},
    "cumulative": {"momentum": None},
}


def outputs(layer):
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


class TestAfterALayer:
    @pytest.mark.parametrize(("layer", "norm", "shape"), LAYERS.values(), ids=LAYERS)
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_is_exact(self, layer, norm, shape, options):
        graph, kept = folded(sequence(copy.deepcopy(layer), norm(outputs(layer), **options)), images(*shape))
        assert not kept
        assert len(list(graph.graph.nodes)) == 3  # the input, the layer, the output

    def test_all_of_a_chain(self):
        net = sequence(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        )
        assert not folded(net, images())[1]

    def test_of_a_functional_layer(self):
        net = network(
            lambda net, x: net.bn(F.conv2d(x, net.w, padding=1)),
            w=nn.Parameter(images(4, 3, 3, 3)),
            bn=nn.BatchNorm2d(4),
        )
        assert not folded(net, images())[1]

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_keeps_the_weights_dtype(self, dtype):
        net = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(dtype)
        graph, _ = fold(capture(net, images().to(dtype)))
        assert {parameter.dtype for parameter in graph.parameters()} == {dtype}

    def test_leaves_the_captured_graph_and_the_model_alone(self):
        net = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        captured = capture(net, images())
        before, state = captured.graph(images()), copy.deepcopy(net.state_dict())
        fold(captured)
        assert torch.equal(captured.graph(images()), before)
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


UNPADDED = [
    "conv3d",
    "without a bias",
    "grouped",
    "depthwise, two each",
    "reflected",
    "linear",
    "linear without a bias",
]


class TestBeforeALayer:
    @pytest.mark.parametrize("name", UNPADDED)
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_is_exact_where_no_zeros_are_padded(self, name, options):
        layer, norm, shape = LAYERS[name]
        graph, kept = folded(sequence(norm(6, **options), copy.deepcopy(layer)), images(*shape))
        assert not kept
        assert len(list(graph.graph.nodes)) == 3

    @pytest.mark.parametrize("padding", ["valid", 0])
    def test_of_a_convolution_without_padding(self, padding):
        assert not folded(sequence(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=padding)), images())[1]

    def test_same_padding_of_a_point_is_none(self):
        assert not folded(sequence(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, padding="same")), images())[1]

    @pytest.mark.parametrize("name", ["conv1d", "conv2d", "depthwise", "same", "dilated and strided"])
    def test_stays_before_zero_padding(self, name):
        layer, norm, shape = LAYERS[name]
        _, kept = folded(sequence(norm(6), copy.deepcopy(layer)), images(*shape))
        assert list(kept) == ["body.0"]
        assert "pads with zeros" in kept["body.0"]

    @pytest.mark.parametrize("name", ["transposed1d", "transposed2d", "transposed3d"])
    def test_stays_before_a_transposed_convolution(self, name):
        layer, norm, shape = LAYERS[name]
        _, kept = folded(sequence(norm(6), copy.deepcopy(layer)), images(*shape))
        assert "transposed convolution" in kept["body.0"]

    def test_goes_back_where_it_can_go_both_ways(self):
        net = sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
        untouched = net.body[2].weight.clone()
        graph, kept = folded(net, images())
        assert not kept
        assert torch.equal(graph.get_submodule("body.2").weight, untouched)


def branch(net, x):
    """Others than the norm read the layer."""
    y = net.conv(x)
    return net.bn(y) + y


def two_readers(net, x):
    """Two layers read the norm, and no layer lies before it."""
    y = net.bn(x)
    return net.conv(y) + net.other(y)


def also_the_output(net, x):
    y = net.bn(x)
    return net.conv(y).mean() + y.mean()


STAYING = {
    "others read the layer": (branch, "others read"),
    "the layer is shared": (lambda net, x: net.bn(net.conv(net.conv(x))), "no layer called once"),
    "a ReLU between": (lambda net, x: net.bn(net.conv(x).relu()), "no layer called once"),
    "a ReLU behind": (lambda net, x: net.conv(net.bn(x).relu()), "no single layer called once"),
    "two readers": (two_readers, "no single layer called once"),
    "read elsewhere too": (also_the_output, "no single layer called once"),
}


class TestStaying:
    @pytest.mark.parametrize(("function", "reason"), STAYING.values(), ids=STAYING)
    def test_with_the_reason(self, function, reason):
        parts = {"conv": nn.Conv2d(3, 3, 1), "other": nn.Conv2d(3, 3, 1), "bn": nn.BatchNorm2d(3)}
        _, kept = folded(network(function, **parts), images())
        assert list(kept) == ["bn"]
        assert reason in kept["bn"]

    def test_batch_statistics(self):
        _, kept = folded(sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), images())
        assert "the batch's own statistics" in kept["body.1"]

    def test_a_shared_norm_is_folded_into_each_layer(self):
        net = network(
            lambda net, x: net.bn(net.b(net.bn(net.a(x)))),
            a=nn.Conv2d(3, 4, 3),
            b=nn.Conv2d(4, 4, 3),
            bn=nn.BatchNorm2d(4),
        )
        assert not folded(net, images())[1]

    def test_channels_of_a_sequence_are_not_the_linear_layers(self):
        _, kept = folded(sequence(nn.Linear(6, 8), nn.BatchNorm1d(5)), images(3, 5, 6))
        assert "outputs aren't its channels" in kept["body.1"]
        _, kept = folded(sequence(nn.BatchNorm1d(5), nn.Linear(6, 8)), images(3, 5, 6))
        assert "inputs aren't its channels" in kept["body.0"]

    def test_tied_weights_stay_apart(self):
        """Two layers that share a parameter: only the one before the norm takes it in."""
        a, b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        b.weight = a.weight
        net = network(lambda net, x: net.b(net.bn(net.a(x)).relu()), a=a, b=b, bn=nn.BatchNorm2d(3))
        assert not folded(net, images())[1]

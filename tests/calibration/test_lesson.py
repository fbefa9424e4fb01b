"""Distances from the float network are what their formulas say; mirroring turns whole images, half of them."""

import pytest
import torch
from networks import images, network
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.calibration.activation_cache import rows_of
from pytorch_quantizer.calibration.lesson import Lesson, Selection, block_outputs, mirrored
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.fold import fold


def made():
    def forward(net, x):
        x = net.relu(net.conv1(x))
        x = net.relu(net.conv2(x) + x)
        return net.linear(x.mean((2, 3)))

    net = network(
        forward,
        conv1=nn.Conv2d(3, 8, 3, padding=1),
        conv2=nn.Conv2d(8, 8, 3, padding=1, bias=False),
        relu=nn.ReLU(),
        linear=nn.Linear(8, 5),
    )
    graph, _ = fold(capture(net, images()))
    return pq.quantize(net, pq.Recipe(weights="int2", activations="int2"), SEEN, progress=False), graph


SEEN = [images(16, 3, 8, 8)]
UNSEEN = images(12, 3, 8, 8, seed=5)


def relative(a, b):
    return float((a - b).square().mean() / b.square().mean())


@torch.no_grad()
def values_by_hand(graph, names):
    found = {}
    with_hooks = torch.fx.Interpreter(graph)
    run = with_hooks.run_node

    def run_node(node):
        result = run(node)
        found[node.name] = result
        return result

    with_hooks.run_node = run_node
    output = with_hooks.run(UNSEEN.clone())
    return output, [found[name] for name in names]


def test_blocks_end_before_the_networks_output():
    model, graph = made()
    names = block_outputs(model, graph)
    assert len(names) == 2
    shapes = [tuple(value.shape) for value in values_by_hand(graph, names)[1]]
    assert shapes == [(12, 8, 8, 8)] * 2


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_the_loss_is_the_outputs_distance_and_the_weighted_mean_of_the_blocks(weight):
    model, graph = made()
    names = block_outputs(model, graph)
    lesson = Lesson(graph, names, weight)
    output, values = values_by_hand(model, names)
    wanted, wanted_values = values_by_hand(graph, names)
    blocks = [relative(value, other) for value, other in zip(values, wanted_values, strict=True)]
    expected = relative(output, wanted) + weight * sum(blocks) / len(blocks)
    assert float(lesson.loss(lesson.with_values(model), UNSEEN).detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_mean_loss_is_over_all_images_and_all_of_them_turned(mirror):
    model, graph = made()
    lesson = Lesson(graph, block_outputs(model, graph), 1.0)
    rows = Selection(rows_of([UNSEEN]), torch.device("cpu"))
    network = lesson.with_values(model)
    parts = [(part, len(part)) for part in UNSEEN.split(5)]
    parts += [(part.flip(3), len(part)) for part in UNSEEN.split(5)] if mirror else []
    expected = sum(float(lesson.loss(network, part).detach()) * size for part, size in parts)
    found = lesson.mean_loss(model, rows, 5, mirror)
    assert found == pytest.approx(expected / sum(size for _, size in parts), rel=1e-5)
    assert lesson.mean_loss(graph, rows, 5, mirror) == 0


def test_a_network_with_values_shares_its_modules():
    model, graph = made()
    network = Lesson(graph, block_outputs(model, graph), 1.0).with_values(model)
    assert network.get_submodule("conv1") is model.get_submodule("conv1")


def test_the_images_are_not_overwritten():
    model, graph = made()
    lesson, seen = Lesson(graph, block_outputs(model, graph), 1.0), UNSEEN.clone()
    lesson.loss(lesson.with_values(model), seen)
    lesson.mean_loss(model, Selection(rows_of([seen]), torch.device("cpu")), 4)
    assert torch.equal(seen, UNSEEN)


def test_half_of_the_images_are_mirrored():
    batch = images(200, 3, 4, 6, seed=1)
    turned = mirrored(batch, torch.Generator().manual_seed(3))
    same = (turned == batch).flatten(1).all(1)
    other = (turned == torch.flip(batch, [3])).flatten(1).all(1)
    assert bool((same ^ other).all())
    assert 70 < int(other.sum()) < 130
    assert torch.equal(turned, mirrored(batch, torch.Generator().manual_seed(3)))

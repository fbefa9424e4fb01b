"""Frontier: a graph computed stretch by stretch gives its own values, and keeps only what is still to be read."""

import pytest
import torch
from networks import images, network
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.calibration.activation_cache import ActivationCache
from pytorch_quantizer.calibration.frontier import Frontier

X = images(10, 3, 8, 8)


def residual(net, x):
    x = net.a(x)
    y = net.relu(net.b(net.relu(x)) * net.gain)
    return net.fc((y + x).flatten(1)) + net.offset


@pytest.fixture
def graph():
    parts = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 3, padding=1), "fc": nn.Linear(256, 5)}
    net = network(residual, relu=nn.ReLU(), gain=torch.ones(4, 1, 1), offset=torch.ones(5), **parts)
    return pq.capture(net, X).graph


def frontier(graph, cache=None):
    cache = cache or ActivationCache()
    rows = cache.room(len(X), X.shape[1:])
    rows.append(X)
    return Frontier(graph, cache, rows, batch=4)


def named(graph, name):
    return next(node for node in graph.graph.nodes if node.name == name)


def last(graph):
    return [node for node in graph.graph.nodes if node.op != "output"][-1]


@pytest.mark.parametrize("ends", [[], ["relu"], ["a", "relu", "b", "add"]])
def test_the_end_is_what_the_graph_computes(graph, ends):
    walked = frontier(graph)
    for end in ends:
        walked.advance(named(graph, end))
    walked.advance(last(graph))
    with torch.no_grad():
        assert torch.allclose(walked.rows[last(graph)].read(slice(0, 10)), graph(X), atol=1e-5)


def test_only_what_is_still_to_be_read_is_kept(graph):
    cache = ActivationCache()
    walked = frontier(graph, cache)
    walked.advance(named(graph, "relu"))
    assert {node.name for node in walked.rows} == {"a", "relu"}
    assert cache.used == 2 * 10 * 4 * 64 * 4
    walked.advance(named(graph, "add"))
    assert {node.name for node in walked.rows} == {"add"}
    assert cache.used == 10 * 4 * 64 * 4


def test_whoever_holds_what_was_dropped_reads_on(graph):
    walked = frontier(graph)
    walked.advance(named(graph, "relu"))
    held = walked.rows[named(graph, "relu")]
    expected = held.read(slice(0, 10))
    walked.advance(last(graph))
    assert torch.equal(held.read(slice(0, 10)), expected)


def test_the_error_is_the_mean_square_over_all_images(graph):
    walked, target = frontier(graph), ActivationCache().room(10, (4, 8, 8))
    with torch.no_grad():
        exact = graph.a(X)
        target.append(exact + torch.arange(10.0).reshape(-1, 1, 1, 1))
    assert walked.error([named(graph, "a")], target) == pytest.approx(
        float(torch.arange(10.0).square().mean()), rel=1e-5
    )

"""Blocks: where a graph is cut for learning, and that the cuts leave nothing out."""

import pytest
import torch
from networks import images, network
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.blocks import MOST_LAYERS, list_blocks
from pytorch_quantizer.models import create_model

WIDE = {"wide_residual": True, "activations": "int4"}
FLOAT = {"activations": "float32", "deployable": False}


def conv(inputs=4, outputs=4, **settings):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **settings)


def quantized(net, **fields):
    return pq.quantize(net, pq.Recipe(**fields), images(), progress=False)


def residual(net, x):
    x = net.relu(net.stem(x))
    x = net.relu(net.b(net.relu(net.a(x))) + x)
    x = net.relu(net.d(net.relu(net.c(x))) + net.e(x))
    return net.fc(x.mean((2, 3)))


def residual_network(**fields):
    parts = {name: conv() for name in "abcde"}
    return quantized(network(residual, stem=conv(3), fc=nn.Linear(4, 5), relu=nn.ReLU(), **parts), **fields)


def layers(blocks):
    return [[str(node.target) for node in block.layers] for block in blocks]


@pytest.mark.parametrize("fields", [{}, WIDE, FLOAT])
def test_residual_blocks_are_one_and_layers_elsewhere(fields):
    blocks = list_blocks(residual_network(**fields))
    assert [sorted(names) for names in layers(blocks)] == [["stem"], ["a", "b"], ["c", "d", "e"], ["fc"]]
    assert [len(block.inputs) for block in blocks] == [1, 1, 1, 1]


def test_each_layer_alone_on_request():
    found = layers(list_blocks(residual_network(), single_layers=True))
    assert sorted(name for [name] in found) == ["a", "b", "c", "d", "e", "fc", "stem"]


@pytest.mark.parametrize("single_layers", [False, True])
def test_the_blocks_follow_one_another_and_compute_the_network(single_layers):
    model = residual_network(wide_residual=True, activations="int4")
    blocks = list_blocks(model, single_layers=single_layers)
    nodes = [node for node in model.graph.nodes if node.op not in ("placeholder", "output")]
    assert [node for block in blocks for node in block.nodes] == nodes
    for block in blocks:
        own = set(block.path)
        assert all(s in own or s in block.inputs for node in block.path for s in node.all_input_nodes)
        assert block.output is block.path[-1]


def test_a_block_ends_behind_its_relu_and_begins_with_the_quantizer():
    blocks = list_blocks(residual_network())
    assert [block.output.name for block in blocks][:3] == ["relu", "relu_2", "relu_4"]
    assert str(blocks[1].nodes[0].target).startswith("quantizers.")


def test_a_pattern_makes_one_block():
    model = residual_network()
    assert layers(list_blocks(model, patterns=["[a-e]"]))[1] == layers(list_blocks(model))[1] + ["c", "d", "e"]
    assert ["a"] in layers(list_blocks(model, patterns=["a"]))
    assert len(list_blocks(model, patterns=["*"])) == 1


def test_a_pattern_without_a_layer_is_refused():
    with pytest.raises(InputError, match=r"no layer's name matches 'layer9\.\*'; there are stem, a, b"):
        list_blocks(residual_network(), patterns=["layer9.*"])


def test_where_nothing_can_be_cut_large_blocks_are_layers():
    def forward(net, x):
        kept = y = net.stem(x)
        for layer in net.layers:
            y = net.relu(layer(y))
        return y + kept

    for inner, blocks in ((MOST_LAYERS, 2), (MOST_LAYERS + 1, MOST_LAYERS + 2)):
        convolutions = nn.ModuleList(conv() for _ in range(inner))
        net = network(forward, stem=conv(3), relu=nn.ReLU(), layers=convolutions)
        assert len(list_blocks(quantized(net))) == blocks


def test_sizes_and_parts_of_tensors_are_not_cut_apart():
    def forward(net, x):
        rows = x.size(0)
        first, second = net.stem(x).chunk(2, dim=1)
        x = net.a(first) + net.b(second)
        return net.fc(x.reshape(rows, -1))

    net = network(forward, stem=conv(3, 8), a=conv(), b=conv(), fc=nn.Linear(256, 5))
    for single_layers in (False, True):
        blocks = list_blocks(quantized(net), single_layers=single_layers)
        shapes = [node.meta["shape"] for block in blocks for node in block.inputs]
        assert all(shape and shape[0] == 2 for shape in shapes)  # of the two images that mark a graph


@pytest.mark.parametrize(("arch", "count"), [("mobilenet_v2", 33), ("squeezenet1_1", 18), ("googlenet", 13)])
def test_networks_of_torchvision(arch, count):
    model = pq.quantize(create_model(arch), "w8a8", torch.randn(2, 3, 96, 96), progress=False)
    blocks = list_blocks(model)
    assert len(blocks) == count
    assert all(len(block.inputs) == 1 for block in blocks)

"""Branches: which layers decide the channels of which tensor, in every way networks are joined."""

import pytest
import torch
import torch.nn.functional as F
from networks import images, network, sequence
from torch import nn

from pytorch_quantizer import Recipe, quantize
from pytorch_quantizer.graph.branches import affected, layers_alone, list_branches, quantizer_of
from pytorch_quantizer.graph.operations import label
from pytorch_quantizer.models import create_model


def conv(inputs=4, outputs=4, kernel=3, **settings):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **settings)


def simulated(net, x=None, recipe="w8a4"):
    return quantize(net, recipe, [images() if x is None else x])


def found(net, x=None, recipe="w8a4"):
    """Tensor → its layers, by name; each layer is seen once."""
    listed = list_branches(simulated(net, x, recipe))
    layers = [layer for branches in listed for layer in branches.layers]
    assert len(layers) == len(set(layers))
    return {label(branches.tensor): [label(layer) for layer in branches.layers] for branches in listed}


def test_a_chain_ends_at_what_the_next_layer_reads():
    net = sequence(
        conv(3), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.MaxPool2d(2), nn.ReLU6(), conv(), nn.SiLU(), conv()
    )
    assert found(net) == {"body.2": ["body.0"], "body.5": ["body.3"], "body.7": ["body.6"], "body.8": ["body.8"]}


def test_the_tensor_is_read_through_its_quantizer_and_the_network_output_is_float():
    model = simulated(sequence(conv(3), nn.ReLU(), conv()))
    inner, last = list_branches(model)
    assert inner.quantizer is next(site.quantizer for site in model.sites if site.name == "body.1")
    assert any(quantizer_of(model, reader) is inner.quantizer for reader in inner.tensor.users)
    assert last.quantizer is None
    assert [label(node) for node in inner.between] == ["body.1"]
    assert last.between == ()
    assert (inner.axis, last.axis) == (1, 1)


class TestAdditions:
    @pytest.mark.parametrize(
        "add", [lambda z, y: z + y, lambda z, y: y.add(z), lambda z, y: z.add_(y), lambda z, y: torch.add(y, z)]
    )
    def test_an_identity_shortcut_is_a_tensor_of_its_own(self, add):
        def forward(net, x):
            y = net.a(x).relu()
            return net.d(F.relu(add(net.c(net.b(y).relu()), y)))

        net = network(forward, a=conv(3), b=conv(), c=conv(), d=conv())
        assert found(net) == {"relu": ["a"], "relu_1": ["b"], "relu_2": ["c"], "d": ["d"]}

    def test_a_projection_shortcut_is_a_branch(self):
        def forward(net, x):
            y = net.a(x).relu()
            return net.d((net.b(y) + net.c(y)).relu())

        net = network(forward, a=conv(3), b=conv(), c=conv(kernel=1), d=conv())
        assert found(net) == {"relu": ["a"], "relu_1": ["b", "c"], "d": ["d"]}

    def test_a_broadcast_branch_of_as_many_channels(self):
        def forward(net, x):
            y = net.a(x).relu()
            return net.d((net.b(y) + net.c(F.adaptive_avg_pool2d(y, 1))).relu())

        net = network(forward, a=conv(3), b=conv(), c=conv(kernel=1), d=conv())
        assert found(net)["relu_1"] == ["b", "c"]

    def test_a_broadcast_branch_of_one_channel_takes_both_out(self):
        def forward(net, x):
            y = net.a(x).relu()
            return net.d((net.b(y) + net.c(y)).relu())

        net = network(forward, a=conv(3), b=conv(), c=conv(4, 1), d=conv())
        assert found(net) == {"relu": ["a"], "d": ["d"]}

    def test_what_is_left_out_is_not_walked_through(self):
        def forward(net, x):
            y = (net.b(x) + net.c(x)).relu()
            return net.e((net.d(y) + y).relu())

        net = network(forward, b=conv(3), c=conv(3, 1), d=conv(), e=conv())
        assert found(net) == {"relu_1": ["d"], "e": ["e"]}

    def test_layers_whose_channels_lie_elsewhere_have_no_common_tensor(self):
        def forward(net, x):
            y = net.a(x).relu()
            return net.d((net.b(y) + net.c(y)).relu())

        net = network(forward, a=conv(3, 8), b=conv(8, 8), c=nn.Linear(8, 8), d=conv(8, 8))
        assert found(net) == {"relu": ["a"], "d": ["d"]}

    @pytest.mark.parametrize("wide_residual", [False, True])
    def test_the_precision_of_residuals_changes_nothing(self, wide_residual):
        def forward(net, x):
            y = net.a(x).relu()
            z = net.d((net.c(net.b(y).relu()) + y).relu())
            return net.e((z + net.f(z.relu())).relu())

        net = network(forward, a=conv(3), b=conv(), c=conv(), d=conv(), e=conv(), f=conv())
        recipe = Recipe(activations="int4", residual="int8", wide_residual=wide_residual)
        expected = {"relu": ["a"], "relu_1": ["b"], "relu_2": ["c"], "relu_3": ["d"], "relu_4": ["f"], "e": ["e"]}
        assert found(net, recipe=recipe) == expected
        model = simulated(net, recipe=recipe)
        narrow = {site.name: site.quantizer for site in model.sites}
        assert any(site.is_wide for site in model.sites) == wide_residual
        assert all(branches.quantizer is narrow[label(branches.tensor)] for branches in list_branches(model))

    @pytest.mark.parametrize("subtract", [lambda y, z: y - z, torch.sub, lambda y, z: torch.add(y, z, alpha=-1)])
    def test_differences_are_no_sums(self, subtract):
        def forward(net, x):
            y = net.a(x).relu()
            return net.c(subtract(y, net.b(y)).relu())

        assert found(network(forward, a=conv(3), b=conv(), c=conv())) == {"relu": ["a"], "c": ["c"]}

    def test_pre_activation_blocks_each_have_their_own_layer(self):
        def forward(net, x):
            y = net.a(x)
            y = y + net.c(net.b(y.relu()).relu())
            y = y + net.e(net.d(y.relu()).relu())
            return net.f(y.relu())

        net = network(forward, **{name: conv(3 if name == "a" else 4) for name in "abcdef"})
        expected = {"relu": ["a"], "relu_1": ["b"], "relu_2": ["c"], "relu_3": ["d"], "relu_4": ["e"], "f": ["f"]}
        assert found(net) == expected

    def test_what_depends_on_the_layers_is_more_than_the_path(self):
        def forward(net, x):
            y = net.a(x)
            gate = y.softmax(1)
            return net.c(net.b(y.relu()) * gate)

        model = simulated(network(forward, a=conv(3), b=conv(), c=conv()))
        first = list_branches(model)[0]
        assert [label(node) for node in first.between] == ["relu"]
        assert [label(node) for node in affected(first)] == ["a", "softmax", "softmax:quantized", "relu"]

    def test_the_real_resnet(self):
        torch.manual_seed(0)
        listed = found(create_model("resnet20", num_classes=10), images(2, 3, 32, 32))
        assert sum(len(layers) for layers in listed.values()) == 20  # its shortcuts hold no layer
        assert max(len(layers) for layers in listed.values()) == 1


class TestConcatenations:
    def test_each_part_is_a_tensor_on_the_results_grid(self):
        def fire(net, x):
            y = net.squeeze(x).relu()
            return net.last(torch.cat([net.one(y).relu(), net.three(y).relu()], 1))

        net = network(fire, squeeze=conv(3), one=conv(kernel=1), three=conv(), last=conv(8))
        assert found(net) == {"relu": ["squeeze"], "relu_1": ["one"], "relu_2": ["three"], "last": ["last"]}
        model = simulated(net)
        grid = next(site.quantizer for site in model.sites if site.name == "cat")
        assert [branches.quantizer is grid for branches in list_branches(model)] == [False, True, True, False]

    def test_dense_connections(self):
        def dense(net, x):
            y = net.a(x).relu()
            z = torch.cat([y, net.b(y).relu()], 1)
            return net.c(z)

        assert found(network(dense, a=conv(3), b=conv(), c=conv(8)))["relu"] == ["a"]


class TestLayers:
    def test_depthwise_transposed_and_linear(self):
        net = sequence(conv(3), nn.ReLU6(), conv(groups=4), nn.ReLU6(), nn.ConvTranspose2d(4, 4, 2), nn.ReLU(), conv())
        assert found(net) == {"body.1": ["body.0"], "body.3": ["body.2"], "body.5": ["body.4"], "body.6": ["body.6"]}

    def test_channels_that_are_reshaped_are_left_out(self):
        net = sequence(conv(3), nn.Flatten(), nn.Linear(256, 4), nn.ReLU(), nn.Linear(4, 2))
        assert found(net) == {"body.0": ["body.0"], "body.3": ["body.2"], "body.4": ["body.4"]}
        shuffled = sequence(conv(3), nn.ReLU6(), nn.PixelShuffle(2), nn.Hardtanh(0, 3), conv(1))
        assert "body.3" not in found(shuffled)

    def test_tokens(self):
        def tokens(net, x):
            y = net.a(x.flatten(2).transpose(1, 2))
            return net.c((y + net.b(F.gelu(net.d(y)))).mean(1))

        net = network(tokens, a=nn.Linear(3, 6), d=nn.Linear(6, 9), b=nn.Linear(9, 6), c=nn.Linear(6, 2))
        listed = list_branches(simulated(net))
        assert {branches.axis for branches in listed} == {-1}
        assert found(net) == {"a": ["a"], "gelu": ["d"], "add": ["b"], "c": ["c"]}

    def test_layers_that_are_called_twice_are_left_out(self):
        net = network(lambda net, x: net.b(net.a(net.a(x).relu()).relu()), a=conv(3, 3), b=conv(3))
        assert found(net) == {"b": ["b"]}
        assert [label(branches.tensor) for branches in layers_alone(simulated(net))] == ["b"]

    def test_each_alone_needs_no_images(self):
        recipe = Recipe(
            weights="int4",
            activations="float32",
            first="float32",
            last="float32",
            residual="float32",
            bias="float32",
            deployable=False,
        )
        model = quantize(sequence(conv(3), nn.ReLU(), conv(), nn.Flatten(), nn.Linear(256, 2)), recipe)
        alone = layers_alone(model)
        assert [label(branches.tensor) for branches in alone] == ["body.0", "body.2", "body.4"]
        assert [branches.axis for branches in alone] == [1, 1, -1]
        assert all(branches.layers == (branches.tensor,) and branches.quantizer is None for branches in alone)

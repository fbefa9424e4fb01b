"""The digest of a network: the same for the same operations, another for every other network."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import Untraceable, images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.digest import network_digest
from pytorch_quantizer.models import create_model


def digest(net, example=None):
    return network_digest(capture(net, example).graph)


def base(*extra, stride=1, channels=8, **options):
    return sequence(nn.Conv2d(3, channels, 3, stride=stride, **options), nn.BatchNorm2d(channels), nn.ReLU(), *extra)


class TestIsTheSame:
    def test_for_other_weights(self):
        net, other = base(Untraceable()), base(Untraceable())
        with torch.no_grad():
            for tensor in other.state_dict().values():
                tensor.mul_(2)
        assert digest(net) == digest(other)

    def test_with_and_without_an_example_in_either_mode(self):
        assert digest(base(), images()) == digest(base()) == digest(base().train())

    def test_in_a_quantized_model(self):
        net = base(nn.Dropout(), nn.Flatten(), nn.Linear(288, 2))
        for recipe in ("w8a8", pq.Recipe(equalize=True, weights="int4")):
            assert pq.quantize(net, recipe, images(), progress=False).network == digest(net)

    def test_in_another_process(self):
        code = "import test_digest as t; from networks import Untraceable; print(t.digest(t.base(Untraceable())))"
        folder = Path(__file__).parent
        paths = os.pathsep.join([str(folder), str(folder.parent), str(folder.parents[1])])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "7"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == digest(base(Untraceable()))

    def test_as_it_was(self):
        """Written into files: a change of this value is a new version of the format."""
        assert digest(create_model("resnet20"))[:16] == "19796525e66d7ba9"


def shifted(amount):
    return network(lambda net, x: F.pad(net.a(x), (0, amount)) + amount, a=nn.Conv2d(3, 4, 1))


class TestIsAnother:
    @pytest.mark.parametrize(
        "other",
        [
            base(nn.ReLU()),
            base(stride=2),
            base(channels=9),
            base(bias=False),
            base(padding_mode="reflect"),
            base(Untraceable()),
            sequence(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU()),
            sequence(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
            network(lambda n, x: n.b(n.a(x)), a=nn.Conv2d(3, 8, 3), b=nn.BatchNorm2d(8)),
        ],
        ids=range(9),
    )
    def test_of_another_network(self, other):
        assert digest(other) != digest(base())

    def test_for_another_constant(self):
        assert len({digest(shifted(1)), digest(shifted(2)), digest(copy.deepcopy(shifted(1)))}) == 2

    def test_where_nodes_read_others(self):
        def net(forward):
            return network(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1))

        assert digest(net(lambda n, x: n.a(x) - n.b(x))) != digest(net(lambda n, x: -n.a(x) + n.b(x)))
        orders = [net(lambda n, x: torch.cat(_both(n, x), 1)), net(lambda n, x: torch.cat(_both(n, x)[::-1], 1))]
        assert digest(orders[0]) != digest(orders[1])


def _both(net, x):
    return [net.a(x), net.b(x)]

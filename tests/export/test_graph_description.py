"""Modules and graphs as plain values: what is on the list comes back as it was, what isn't is said to be missing."""

import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from networks import Untraceable, images, network
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.export.graph_description import (
    build_graph,
    build_module,
    describe_graph,
    describe_module,
    functions,
    methods,
    modules,
)
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.recurrent import Gates, Recurrence

MOST = 10**6
# By an argument's name, one that isn't its default; where classes differ, by class and name.
ARGUMENTS = {
    **{"in_channels": 4, "out_channels": 6, "kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2, "groups": 2},
    **{"output_padding": 1, "padding_mode": "reflect", "in_features": 4, "out_features": 6, "num_features": 4},
    **{"eps": 1e-3, "momentum": 0.3, "affine": False, "track_running_stats": False, "normalized_shape": [4, 5]},
    **{"num_groups": 2, "num_channels": 4, "elementwise_affine": False, "output_size": 3, "scale_factor": 2.0},
    **{"ceil_mode": True, "count_include_pad": False, "divisor_override": 3, "return_indices": True, "value": 0.5},
    **{"negative_slope": 0.2, "alpha": 0.7, "beta": 2.0, "threshold": 3.0, "lambd": 0.2, "approximate": "tanh"},
    **{"dim": 1, "p": 0.3, "start_dim": 2, "end_dim": 3, "unflattened_size": (2, 2), "upscale_factor": 2},
    **{"downscale_factor": 2, "min_val": -2.0, "max_val": 5.0, "num_parameters": 4, "init": 0.1, "size": 3, "k": 2.0},
    **{"mode": "bilinear", "align_corners": True, "recompute_scale_factor": True, "norm_type": 3, "bias": False},
    **{"hidden_size": 4, "batch_first": True, "reverse": True, "inplace": True},
    **{"num_embeddings": 5, "embedding_dim": 4, "padding_idx": 2, "max_norm": 2.0, "scale_grad_by_freq": True},
    **{"sparse": True},
}
PADS = ("Constant", "Zero", "Reflection", "Replication", "Circular")
SPECIAL = {
    **{(f"{kind}Pad{n}d", "padding"): (1,) * 2 * n for kind in PADS for n in (1, 2, 3)},
    **{("Upsample", "size"): None, ("UpsamplingNearest2d", "size"): None, ("UpsamplingBilinear2d", "size"): None},
    **{("LocalResponseNorm", "size"): 3, ("Recurrence", "mode"): "GRU", ("Gates", "mode"): "LSTM"},
    **{(f"ConvTranspose{n}d", "padding_mode"): "zeros" for n in (1, 2, 3)},
}
OURS = {"ChannelClippedReLU"}
ABSENT = {"device", "dtype", "args", "kwargs", "min_value", "max_value", "_weight", "_freeze"}


def made(cls):
    """A module with every argument other than its default, as far as ``ARGUMENTS`` knows one."""
    names = [name for name in list(inspect.signature(cls.__init__).parameters)[1:] if name not in ABSENT]
    given = {name: SPECIAL.get((cls.__name__, name), ARGUMENTS[name]) for name in names}
    return cls(**given).eval()


def plain(module):
    """What a module remembers beside its tensors."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


class TestModules:
    @pytest.mark.parametrize("name", sorted(modules().keys() - OURS))
    def test_come_back_with_every_argument(self, name):
        module = made(modules()[name])
        built = build_module(json.loads(json.dumps(describe_module(module))), MOST)
        assert type(built) is type(module)
        assert repr(built) == repr(module)
        assert plain(built) == plain(module)
        shapes = [{key: list(tensor.shape) for key, tensor in each.state_dict().items()} for each in (built, module)]
        assert shapes[0] == shapes[1]

    def test_subclasses_are_others(self):
        class Conv2d(nn.Conv2d):
            pass

        assert describe_module(Conv2d(3, 4, 1)) is None
        assert describe_module(Untraceable()) is None


class TestGraphs:
    @pytest.mark.parametrize(
        "forward",
        [
            lambda n, x: torch.where(x > 0, torch.log(x.abs() + 1), F.glu(x.repeat(1, 2, 1, 1), 1)),
            lambda n, x: torch.maximum(x, x.square()).max(1)[0] + F.log_softmax(x, 1).min(1)[0],
            lambda n, x: F.batch_norm(x, n.mean, n.var) + F.rms_norm(x, (8,)),
            lambda n, x: torch.einsum("nchw,nchv->nhwv", x, x),
            lambda n, x: x.view(x.size(0), -1)[:, ::2].softmax(-1),
        ],
        ids=range(5),
    )
    def test_compute_the_same_when_they_come_back(self, forward):
        net = network(forward, mean=torch.zeros(3), var=torch.ones(3))
        graph = capture(net, images()).graph
        described = json.loads(json.dumps(describe_graph(graph.graph)))
        assert all(entry["target"] is not None for entry in described)
        again = torch.fx.GraphModule(graph, build_graph(described, graph, {}))
        assert torch.equal(again(images()), graph(images()))

    def test_of_swin_transformers_need_no_float_model(self, tmp_path):
        from torchvision.models.swin_transformer import SwinTransformer

        torch.manual_seed(0)
        net = SwinTransformer([4, 4], 8, [2, 2], [2, 4], [2, 2], stochastic_depth_prob=0.5, num_classes=5).eval()
        model = pq.quantize(net, "w8a8", images(4, 3, 32, 32), progress=False)
        pq.save(model, tmp_path / "m.safetensors")
        loaded = pq.load(tmp_path / "m.safetensors")
        assert torch.equal(loaded(images(2, 3, 32, 32)), model(images(2, 3, 32, 32)))


class TestLists:
    def test_everything_is_said_by_a_public_name(self):
        assert {"torch.cat", "torch.nn.functional.relu", "operator.add", "builtins.getattr"} <= functions().keys()
        assert {"view", "flatten", "mean"} <= methods()
        assert {nn.Conv2d, nn.Linear, nn.BatchNorm2d, Recurrence, Gates} <= set(modules().values())

"""The graph that runs: additions and ReLUs in the quantizers' own pass, and the same bits as the model's own graph."""

import copy

import pytest
import torch
from torch import fx, nn

import pytorch_quantizer as pq
from pytorch_quantizer.models import create_model

RECIPES = {
    "w8a4_aciq": pq.Recipe.load("w8a4_aciq"),
    "online": pq.Recipe(weights="int8", activations="int4", clip="laplace", statistics="online", deployable=False),
    "wide residual": pq.Recipe(weights="int8", activations="int4", wide_residual=True),
    "k-means": pq.Recipe(weights="kmeans4", activations="int8", deployable=False),
}


def calls(model, argument):
    return model.code.count(f", {argument} = ")


class Branches(nn.Module):
    """What may be fused, and what may not because somebody else reads it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x):
        a = self.first(x)
        b = torch.relu(a)
        c = self.second(b) + a  # a is read twice, and once before its ReLU
        d = torch.relu(c)
        e = self.third(d) + d + 1.0
        return nn.functional.relu6(e) + c


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("arch", ["resnet20", "resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_runs_the_same_bits_as_its_own_graph(arch, recipe):
    torch.manual_seed(0)
    side = 32 if arch == "resnet20" else 64
    images = torch.randn(2, 3, side, side)
    model = pq.quantize(create_model(arch), RECIPES[recipe], [images], progress=False)
    with torch.inference_mode():
        assert torch.equal(model(images), fx.Interpreter(model).run(images))


def test_a_resnet_has_every_addition_and_relu_fused():
    model = pq.quantize(create_model("resnet20"), "w8a4_aciq", [torch.randn(2, 3, 32, 32)], progress=False)
    assert calls(model, "relu") == 19
    assert calls(model, "other") == 9
    assert sum("relu" in node.name for node in model.graph.nodes if node.op != "get_attr") > 19  # all still apart there


def test_online_quantizers_take_the_relu_they_observe():
    model = pq.quantize(create_model("squeezenet1_1"), RECIPES["online"], None, progress=False)
    assert calls(model, "relu") > 0
    assert calls(model, "observed") < calls(model, "relu")


def test_what_others_read_is_neither_fused_nor_overwritten():
    torch.manual_seed(0)
    images = torch.randn(2, 4, 8, 8)
    network = Branches().eval()
    model = pq.quantize(network, pq.Recipe(weights="int8", activations="int8"), [images], progress=False)
    before = images.clone()
    with torch.inference_mode():
        first, again = model(images), model(images)
        assert torch.equal(first, again)
        assert torch.equal(first, fx.Interpreter(model).run(images))
    assert torch.equal(images, before)
    assert torch.allclose(first, network(images), atol=0.2)


def test_gradients_flow_through_the_fused_graph():
    torch.manual_seed(0)
    images = torch.randn(2, 4, 8, 8)
    model = pq.quantize(Branches().eval(), pq.Recipe(weights="int8", activations="int8"), [images], progress=False)
    grads = []
    for run in (model, fx.Interpreter(model).run):
        leaf = images.clone().requires_grad_()
        run(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
    assert grads[0].abs().sum() > 0


def test_copies_and_compiled_models_run_it_too():
    images = torch.randn(2, 3, 32, 32)
    model = pq.quantize(create_model("resnet20"), "w8a4_aciq", [images], progress=False)
    with torch.inference_mode():
        expected = model(images)
        assert torch.equal(copy.deepcopy(model)(images), expected)
        assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected)
    assert calls(copy.deepcopy(model), "relu") == 19


def test_an_online_model_compiles():
    images = torch.randn(2, 3, 64, 64)
    model = pq.quantize(create_model("squeezenet1_1"), RECIPES["online"], None, progress=False)
    with torch.inference_mode():
        expected = model(images)
        assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected)


def test_additions_of_two_types_run_under_autocast():
    torch.manual_seed(0)
    images = torch.randn(2, 4, 8, 8)
    model = pq.quantize(Branches().eval(), pq.Recipe(weights="int8", activations="int8"), [images], progress=False)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(images), fx.Interpreter(model).run(images))


def test_hooks_see_what_their_modules_compute_once_recompiled():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    model = pq.quantize(create_model("resnet20"), "w8a4_aciq", [images], progress=False)
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ReLU):
            module.register_forward_hook(lambda *call: seen.append(call[2]))
    model.recompile()
    with torch.inference_mode():
        model(images)
        fused = seen.copy()
        seen.clear()
        fx.Interpreter(model).run(images)
    assert len(fused) == len(seen) == 38
    assert all(torch.equal(*pair) for pair in zip(fused, seen, strict=True))


def test_its_own_graph_overwrites_nothing():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    model = pq.quantize(create_model("resnet20"), "w8a4_aciq", [images], progress=False)
    values = {}

    class Keeper(fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            values[n] = (value, value.clone()) if isinstance(value, torch.Tensor) else None
            return value

    with torch.inference_mode():
        Keeper(model).run(images)
    assert all(torch.equal(*pair) for pair in values.values() if pair)


@pytest.mark.cuda
def test_cuda_graphs(device):
    if device != "cuda":
        pytest.skip("CUDA graphs are CUDA's")
    images = torch.randn(8, 3, 32, 32, device=device)
    model = pq.quantize(create_model("resnet20").to(device), "w8a4_aciq", [images], progress=False)
    with torch.inference_mode():
        expected = model(images)
        captured = torch.cuda.make_graphed_callables(model, (images,))
        assert torch.allclose(captured(images), expected, atol=1e-4)

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
    "codebook": pq.Recipe(weights="pot4", activations="int8", deployable=False),
}


INT8 = {
    "int8": pq.Recipe(weights="int8", activations="int8"),
    "int8, additions of floats": pq.Recipe(weights="int8", activations="int8", residual="float32", deployable=False),
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


class Between(nn.Module):
    """Something between convolutions."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.last = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.whole = nn.Conv2d(4, 4, 8)
        self.shift = nn.Parameter(torch.randn(1, 4, 8, 8))
        self.between = between

    def forward(self, x):
        return self.last(self.between(self, x))


BETWEEN = {
    "a multiple added": lambda own, x: torch.add(own.first(x), own.second(x), alpha=2),
    "a multiple, the old way": lambda own, x: torch.add(own.first(x), 2, own.second(x)),
    "broadcast": lambda own, x: own.whole(x) + own.first(x),
    "the input's ReLU": lambda own, x: torch.relu(x),
    "a parameter added to the input": lambda own, x: x + own.shift,
    "the input added to a parameter": lambda own, x: own.shift + x,
}


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


@pytest.mark.filterwarnings("ignore:This overload of add is deprecated")
@pytest.mark.parametrize("recipe", INT8)
@pytest.mark.parametrize("between", BETWEEN)
def test_neither_the_result_nor_what_it_came_from_changes(between, recipe):
    torch.manual_seed(0)
    images = torch.randn(1, 4, 8, 8)
    network = Between(BETWEEN[between]).eval().requires_grad_(False)
    model = pq.quantize(network, INT8[recipe], [images], progress=False)
    sources = [images, *model.parameters()]
    before = [tensor.detach().clone() for tensor in sources]
    with torch.inference_mode():
        expected = fx.Interpreter(model).run(images)
        assert torch.equal(model(images), expected)
        assert torch.equal(model(images), expected)
    assert all(torch.equal(*pair) for pair in zip(sources, before, strict=True))


def test_an_online_quantizer_keeps_what_it_observes():
    torch.manual_seed(0)
    images = torch.randn(2, 4, 8, 8)
    model = pq.quantize(Branches().eval(), RECIPES["online"], None, progress=False)
    assert calls(model, "observed") > 0  # a before its own quantizer, behind which the ReLU reads it
    assert torch.equal(model(images), fx.Interpreter(model).run(images))


@pytest.mark.parametrize("frozen", ["first", "second"])
@pytest.mark.parametrize("recipe", INT8)
def test_an_addition_keeps_the_gradient_of_either_operand(recipe, frozen):
    torch.manual_seed(0)
    images = torch.randn(2, 4, 8, 8)
    network = Between(lambda own, x: own.first(x) + own.second(x)).eval()
    network.get_submodule(frozen).requires_grad_(False)
    model = pq.quantize(network, INT8[recipe], [images], progress=False)
    trained = [p for name in ("first", "second") if name != frozen for p in model.get_submodule(name).parameters()]
    grads = [torch.autograd.grad(run(images).sum(), trained) for run in (model, fx.Interpreter(model).run)]
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)
        assert one.abs().sum() > 0


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


def test_an_online_quantizer_observes_what_no_other_has_overwritten():
    torch.manual_seed(0)
    images = torch.randn(2, 4, 8, 8)
    model = pq.quantize(Branches().eval(), RECIPES["online"], None, progress=False)
    expected = model(images)  # nothing is done in place where a gradient is needed
    with torch.no_grad():
        assert torch.equal(model(images), expected)


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

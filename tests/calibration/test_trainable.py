"""A trainable copy computes what the model computes, learns, and what it has learned is what the model then stores."""

import copy

import pytest
import torch
from networks import images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.calibration.trainable import LearnedLayer, batch_norms, make_trainable, write_back
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.fold import fold


def residual():
    """A block with batch norms and a shortcut, then a linear layer."""

    def forward(net, x):
        x = net.relu(net.bn1(net.conv1(x)))
        x = net.relu(net.bn2(net.conv2(x)) + x)
        return net.linear(x.mean((2, 3)))

    return network(
        forward,
        conv1=nn.Conv2d(3, 6, 3, padding=1),
        bn1=nn.BatchNorm2d(6),
        conv2=nn.Conv2d(6, 6, 3, padding=1, bias=False),
        bn2=nn.BatchNorm2d(6),
        relu=nn.ReLU(),
        linear=nn.Linear(6, 5),
    )


def quantized(net=None, **fields):
    """(simulated model, folded float graph)."""
    net = net or residual()
    graph, _ = fold(capture(net, images()))
    settings = {"weights": "int3", "activations": "int4", "first": "int3", "last": "int3"}
    return pq.quantize(net, pq.Recipe(**settings | fields), images(16, 3, 8, 8), progress=False), graph


def parameters(learned, ending=""):
    named = learned.named_parameters()
    return [parameter for name, parameter in named if parameter.requires_grad and name.endswith(ending)]


def apart(model):
    """What the model computes operation by operation: its forward fuses some."""
    return lambda x: torch.fx.Interpreter(model).run(x.clone())


def train(learned, steps=20, rate=0.05):
    """Towards outputs that it can't know."""
    wanted = torch.randn(4, 5, generator=torch.Generator().manual_seed(7))
    optimizer = torch.optim.Adam(parameters(learned), lr=rate)
    losses = []
    for _ in range(steps):
        loss = (learned(images()) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


RECIPES = {
    "plain": {},
    "affine weights": {"weight_symmetric": False, "weight_narrow": False},
    "weights per tensor": {"weight_granularity": "per_tensor"},
    "float biases": {"bias": "float32", "deployable": False},
    "signed activations": {"activation_symmetric": True},
    "k-means weights": {"weights": "kmeans3", "first": None, "last": None, "deployable": False},
    "channels' activations": {"activation_granularity": "per_channel", "deployable": False},
    "float8 activations": {"activations": "fp8_e4m3", "deployable": False},
    "online": {"statistics": "online", "deployable": False},
    "shifted weights": {"weight_correction": "both", "deployable": False},
}


@pytest.mark.parametrize("fields", RECIPES.values(), ids=RECIPES.keys())
class TestEveryRecipe:
    def test_an_untrained_copy_computes_the_same_and_changes_nothing(self, fields):
        model, graph = quantized(**fields)
        before = copy.deepcopy(model.state_dict())
        for originals in (None, graph):
            learned = make_trainable(model, originals)
            assert torch.equal(learned(images()), apart(model)(images()))
            write_back(learned, model)
            assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_what_was_learned_is_what_the_model_computes(self, fields):
        model, graph = quantized(**fields)
        before = apart(model)(images())
        learned = make_trainable(model, graph)
        losses = train(learned)
        assert losses[-1] < 0.9 * losses[0]
        write_back(learned, model)
        after = apart(model)(images())
        assert not torch.allclose(after, before, atol=0.05)
        torch.testing.assert_close(after, learned(images()), rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(model(images()), after, rtol=1e-5, atol=1e-5)


class TestWhatLearns:
    def test_weights_keep_their_codes_unless_the_originals_are_given(self):
        model, graph = quantized()
        codes = {site.name: site.quantizer.quantize(model.get_parameter(site.node)) for site in weights(model)}
        for originals in (None, graph):
            learned = make_trainable(model, originals)
            train(learned)
            changed = copy.deepcopy(model)
            write_back(learned, changed)
            after = {site.name: site.quantizer.quantize(changed.get_parameter(site.node)) for site in weights(changed)}
            assert all(torch.equal(codes[name], after[name]) for name in codes) == (originals is None)

    def test_scales_biases_and_steps_all_move(self):
        model, _ = quantized()
        learned = make_trainable(model)
        before = {name: parameter.clone() for name, parameter in learned.named_parameters()}
        train(learned, steps=2)
        moved = [name for name, parameter in learned.named_parameters() if not torch.equal(parameter, before[name])]
        assert {name.rpartition(".")[2] for name in moved} == {"log_gain", "bias", "growth", "offset"}
        kept = {name for name, p in learned.named_parameters() if p.requires_grad} - set(moved)
        assert all(name.endswith("offset") for name in kept)  # where nothing is clipped, nothing asks for another one

    def test_zero_points_after_a_relu_stay(self):
        learned = make_trainable(quantized()[0])
        assert learned.get_submodule("quantizers.relu").offset is None
        assert learned.get_submodule("quantizers.x").offset is not None

    @pytest.mark.parametrize(
        ("grids", "learning"),
        [
            ("lsq_plus", {"log_gain", "latent", "bias", "growth", "offset"}),
            ("lsq", {"log_gain", "latent", "bias", "growth"}),
            ("fixed", {"latent", "bias"}),
        ],
    )
    def test_of_grids_what_is_asked(self, grids, learning):
        learned = make_trainable(*quantized(), grids=grids)
        named = learned.named_parameters()
        assert {name.rpartition(".")[2] for name, parameter in named if parameter.requires_grad} == learning

    def test_gradients_of_fixed_grids_go_straight_through_within_the_range(self):
        learned = make_trainable(*quantized(activation_symmetric=False), grids="fixed")
        step = learned.get_submodule("quantizers.x")
        scale, zero_point = (float(part) for part in step.grid())
        codes = torch.tensor([step.qmin - 3.0, step.qmin + 0.3, step.qmax - 0.3, step.qmax + 3.0])
        x = ((codes - zero_point) * scale).requires_grad_()
        step(x).backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert x.grad.tolist() == [0, 2, 3, 0]

    def test_of_grids_what_is_none(self):
        model, graph = quantized()
        with pytest.raises(InputError, match="grids must be one of lsq_plus, lsq, fixed, got 'learned'"):
            make_trainable(model, graph, grids="learned")
        with pytest.raises(InputError, match=r"grids fixed can't keep norms, .*: set norms to false"):
            make_trainable(model, graph, grids="fixed", norms=True)

    def test_the_model_itself_is_untouched_until_it_is_written_to(self):
        model, graph = quantized()
        before = copy.deepcopy(model.state_dict())
        train(make_trainable(model, graph, norms=True))
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_a_weight_begins_where_it_was_before_rounding(self):
        model, graph = quantized()
        learned = make_trainable(model, graph)
        layer = learned.get_submodule("conv2")
        scale = model.get_submodule("conv2").weight_quantizer.scale.reshape(-1, 1, 1, 1)
        free = (layer.latent - (graph.get_parameter("conv2.weight") / scale)).abs() < 1e-5
        assert free.float().mean() > 0.9

    def test_codes_that_someone_else_chose_are_those_it_begins_with(self):
        """As after learned rounding: up where the float weight is nearer to the code below."""
        model, graph = quantized()
        layer = model.get_submodule("conv2")
        codes = layer.weight_quantizer.quantize(layer.weight)
        other = (codes + 1).clamp(max=3)
        with torch.no_grad():
            layer.weight.copy_(layer.weight_quantizer.dequantize(other))
        learned = make_trainable(model, graph)
        assert torch.equal(learned.get_submodule("conv2").codes(), other)


class TestNorms:
    def test_they_begin_as_the_identity(self):
        model, graph = quantized()
        learned = make_trainable(model, graph, norms=True)
        assert len(list(batch_norms(learned))) == 2
        torch.testing.assert_close(learned(images()), apart(model)(images()), rtol=1e-4, atol=1e-4)

    def test_they_fold_into_scales_and_biases(self):
        model, graph = quantized()
        learned = make_trainable(model, graph, norms=True)
        for norm in batch_norms(learned):
            norm.train()
        train(learned, steps=30)
        learned.eval()
        assert all(bool((norm.running_var > 0).all()) for norm in batch_norms(learned))
        write_back(learned, model)
        torch.testing.assert_close(apart(model)(images()), learned(images()), rtol=1e-3, atol=2e-3)

    def test_a_gain_below_zero_counts_by_its_size(self):
        model, graph = quantized()
        learned = make_trainable(model, graph, norms=True)
        with torch.no_grad():
            next(batch_norms(learned)).weight[0].neg_()
        write_back(learned, model)
        torch.testing.assert_close(apart(model)(images()), learned(images()), rtol=1e-3, atol=2e-3)

    def test_a_channel_that_falls_silent_keeps_its_bias(self):
        model, graph = quantized()
        learned = make_trainable(model, graph, norms=True)
        norm = next(batch_norms(learned))
        with torch.no_grad():
            norm.weight[1], norm.bias[1] = 0.0, 3.0
        write_back(learned, model)
        assert float(model.get_submodule("conv1").bias[1]) == pytest.approx(3.0, rel=1e-3)
        assert bool((model.get_submodule("conv1").weight_quantizer.scale > 0).all())

    def test_there_are_none_where_weights_have_one_scale(self):
        model, graph = quantized(weight_granularity="per_tensor")
        assert not list(batch_norms(make_trainable(model, graph, norms=True)))


class TestStorage:
    def test_what_was_learned_survives_the_packed_file(self, tmp_path):
        model, graph = quantized()
        learned = make_trainable(model, graph, norms=True)
        train(learned)
        write_back(learned, model)
        pq.save(model, tmp_path / "model.safetensors")
        assert torch.equal(pq.load(tmp_path / "model.safetensors")(images()), model(images()))

    def test_what_was_learned_is_what_integers_compute(self):
        model, graph = quantized()
        learned = make_trainable(model, graph)
        train(learned)
        write_back(learned, model)
        integer = pq.export.integer.IntegerModel(model)
        torch.testing.assert_close(integer(images()), model(images()), rtol=1e-4, atol=1e-4)


def test_transposed_and_shared_layers():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    net = sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), shared, nn.ReLU(), shared, nn.ConvTranspose2d(4, 6, 2, groups=2))
    graph, _ = fold(capture(net, images()))
    recipe = pq.Recipe(weights="int4", activations="int8", first="int4", last="int4")
    model = pq.quantize(net, recipe, images(16, 3, 8, 8), progress=False)
    learned = make_trainable(model, graph)
    assert sum(isinstance(module, LearnedLayer) for module in learned.modules()) == 3
    assert torch.equal(learned(images()), apart(model)(images()))
    optimizer = torch.optim.Adam(parameters(learned), lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        learned(images()).square().mean().backward()
        optimizer.step()
    write_back(learned, model)
    torch.testing.assert_close(apart(model)(images()), learned(images()), rtol=1e-3, atol=2e-3)


def weights(model):
    return [site for site in model.sites if site.kind == "weight" and site.quantizer is not None]

"""Corrections on simulated models: what they promise of tensors, grids and graphs, judged by running the models."""

import copy

import pytest
import torch
from networks import images, network, sequence
from torch import nn

from pytorch_quantizer import Recipe, capture, fold, quantize
from pytorch_quantizer.calibration import corrections as corrections_module
from pytorch_quantizer.calibration.corrections import (
    correct_activations,
    correct_weights,
    list_corrections,
    reestimate_batch_norms,
)
from pytorch_quantizer.evaluation.size import size_bytes
from pytorch_quantizer.graph.branches import layers_alone, list_branches
from pytorch_quantizer.graph.operations import label, layer_nodes
from pytorch_quantizer.graph.rescale import ensure_biases, takes_gain
from pytorch_quantizer.quantization.statistics import TensorStatistics

BAD = Recipe(weights="int2", activations="int4", first="int4", last="int4")
SIMULATED = BAD.replace(deployable=False)
BATCHES = [images(6, 3, 8, 8), images(3, 3, 8, 8, seed=2)]
ALL = torch.cat(BATCHES)


def conv(inputs=8, outputs=8, **settings):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **settings)


def chain():
    norms = [nn.BatchNorm2d(8) for _ in range(2)]
    return sequence(conv(3, bias=False), norms[0], nn.ReLU(), conv(), norms[1], nn.ReLU(), conv(8, 4))


def trained_chain():
    """One whose batch norms know the moments of what they read."""
    net = chain().train()
    for norm in (net.body[1], net.body[4]):
        norm.momentum = None  # the mean over batches, of which there is one
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
        torch.nn.init.uniform_(norm.bias, -1.0, 1.0)
    net(ALL)
    return net.eval()


def residual():
    def forward(net, x):
        y = net.a(x).relu()
        y = (net.c(net.b(y).relu()) + y).relu()
        y = (net.e(net.d(y).relu()) + net.s(y)).relu()
        return net.f(y.mean((2, 3)))

    return network(forward, a=conv(3), b=conv(), c=conv(), d=conv(), e=conv(), s=nn.Conv2d(8, 8, 1), f=nn.Linear(8, 3))


def fire():
    def forward(net, x):
        y = net.squeeze(x).relu()
        return net.last(torch.cat([net.one(y).relu(), net.three(y).relu()], 1))

    return network(forward, squeeze=conv(3), one=nn.Conv2d(8, 8, 1), three=conv(), last=conv(16, 4))


def summed():
    """Two layers whose sum is read as it is."""
    return network(lambda net, x: net.d(net.b(x) + net.c(x)), b=conv(3), c=conv(3), d=conv(8, 4))


def pair(net, recipe=BAD):
    """(the simulated model before any correction, the float graph it is compared with)"""
    graph, _ = fold(capture(net, ALL[:2]))
    ensure_biases(layer for _, layer in layer_nodes(graph))
    bare = recipe.replace(weight_correction="none", activation_correction="none", batch_norm_reestimation=False)
    model = quantize(copy.deepcopy(graph), bare, BATCHES)
    model.meta["recipe"] = recipe
    return model, graph


@torch.no_grad()
def values(graph, x=ALL):
    """Every node's value, by name."""
    interpreter = torch.fx.Interpreter(graph, garbage_collect_values=False)
    for node in graph.graph.nodes:  # a value that is overwritten would be seen as it is afterwards
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
    interpreter.run(x)
    return {node.name: value for node, value in interpreter.env.items()}


def errors(model, graph):
    """By tensor that is corrected, the squared error and the mean absolute error of its channels' means."""
    simulated, expected = values(model), values(graph)
    found = {}
    for tensor, quantizer, *_, axis in list_branches(model):
        wanted, value = expected[tensor.name], simulated[tensor.name]
        value = value if quantizer is None else quantizer(value)
        others = [dim for dim in range(value.dim()) if dim != axis % value.dim()]
        difference = value - wanted
        found[label(tensor)] = (float(difference.square().mean()), float(difference.mean(others).abs().mean()))
    return found


def assert_deployable(model):
    for _, layer in layer_nodes(model):
        assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight)
        assert torch.equal(layer.bias_quantizer(layer.bias), layer.bias)
        product = layer.bias_quantizer.input_scale * layer.weight_quantizer.scale
        assert torch.equal(layer.bias_quantizer.scale, product)


@pytest.mark.parametrize("net", [chain, residual, fire])
class TestActivations:
    @pytest.mark.parametrize("parts", ["mean", "gain", "both"])
    def test_no_tensor_gets_worse_and_what_is_reported_is_so(self, net, parts):
        model, graph = pair(net(), BAD.replace(activation_correction=parts))
        corrections = correct_activations(model, graph, BATCHES)
        assert [c.tensor for c in corrections] == [label(branches.tensor) for branches in list_branches(model)]
        assert all(c.error_after <= c.error_before for c in corrections)
        measured = errors(model, graph)
        for correction in corrections:
            assert measured[correction.tensor][0] == pytest.approx(correction.error_after, rel=1e-4)

    def test_means_come_nearer_and_so_does_the_output(self, net):
        model, graph = pair(net(), BAD.replace(activation_correction="both"))
        before = errors(model, graph)
        correct_activations(model, graph, BATCHES)
        after = errors(model, graph)
        assert sum(mean for _, mean in after.values()) < 0.5 * sum(mean for _, mean in before.values())
        assert sum(error for error, _ in after.values()) < 0.8 * sum(error for error, _ in before.values())
        assert list(after.values())[-1][1] < 0.2 * list(before.values())[-1][1]

    def test_the_model_stays_deployable_and_costs_nothing(self, net):
        model, graph = pair(net(), BAD.replace(activation_correction="both"))
        nodes, codes = len(model.graph.nodes), [m.weight_quantizer.quantize(m.weight) for _, m in layer_nodes(model)]
        correct_activations(model, graph, BATCHES)
        assert len(model.graph.nodes) == nodes
        assert_deployable(model)
        after = [m.weight_quantizer.quantize(m.weight) for _, m in layer_nodes(model)]
        assert all(map(torch.equal, codes, after))

    def test_is_what_quantize_does(self, net):
        recipe = BAD.replace(activation_correction="both")
        model, graph = pair(net(), recipe)
        correct_activations(model, graph, BATCHES)
        assert torch.equal(quantize(net(), recipe, BATCHES)(ALL), model(ALL))

    @pytest.mark.parametrize("parts", ["mean", "gain"])
    def test_a_gain_is_given_only_where_one_is_asked_for(self, net, parts):
        model, graph = pair(net(), BAD.replace(activation_correction=parts))
        before = copy.deepcopy(model)
        correct_activations(model, graph, BATCHES)
        same = [
            torch.equal(x.weight, y.weight) for (_, x), (_, y) in zip(*map(layer_nodes, (model, before)), strict=True)
        ]
        assert all(same) == (parts == "mean")


class TestSums:
    """Two layers that share the correction of their sum, whose mean follows theirs exactly."""

    RECIPE = Recipe(deployable=False, bias="float32", overrides=[{"layers": "[bc]", "weights": "int2"}])

    def means(self, *models):
        return [values(model)["add"].mean((0, 2, 3)) for model in models]

    def test_both_together_carry_the_shift_once(self):
        model, graph = pair(summed(), self.RECIPE.replace(activation_correction="mean"))
        before, layers = copy.deepcopy(model), correct_activations(model, graph, BATCHES)[0].layers
        assert layers == ("b", "c")
        was, got, wanted = self.means(before, model, graph)
        assert (got - wanted).abs().max() < 0.1 * (was - wanted).abs().max()

    def test_a_gain_alone_leaves_the_mean_where_it_is(self):
        model, graph = pair(summed(), self.RECIPE.replace(activation_correction="gain"))
        before = copy.deepcopy(model)
        correct_activations(model, graph, BATCHES)
        was, got = self.means(before, model)
        assert not torch.equal(before.get_submodule("b").weight, model.get_submodule("b").weight)
        assert float((got - was).abs().max()) < 0.02 * float(values(graph)["add"].std())

    def test_where_one_layer_takes_no_gain_neither_gets_any(self):
        recipe = SIMULATED.replace(activation_correction="both", overrides=[{"layers": "c", "weights": "kmeans2"}])
        model, graph = pair(summed(), recipe)
        before = copy.deepcopy(model)
        [first, _] = correct_activations(model, graph, BATCHES)
        assert first.error_after < first.error_before
        for name in "bc":
            assert torch.equal(model.get_submodule(name).weight, before.get_submodule(name).weight)


@pytest.mark.parametrize("net", [chain, residual])
def test_of_all_steps_the_best_is_kept(net, monkeypatch):
    found = []
    for steps in range(1, 7):
        monkeypatch.setattr(corrections_module, "STEPS", steps)
        model, graph = pair(net(), BAD.replace(weights="int3", activations="int3", activation_correction="mean"))
        found.append([c.error_after for c in correct_activations(model, graph, BATCHES)][:2])
    assert found == sorted(found, reverse=True)


def test_channels_that_are_mostly_cut_off_get_their_mean_back_too():
    """A shift of what a ReLU cuts off moves nothing: the rest has to move the further."""
    net = sequence(conv(3), nn.ReLU(), conv(8, 4))
    with torch.no_grad():
        net.body[0].bias -= 1.2
    model, graph = pair(net, Recipe(overrides=[{"layers": "body.0", "weights": "int2"}], activation_correction="mean"))
    before = copy.deepcopy(model)
    correct_activations(model, graph, BATCHES)
    was, got, wanted = (values(m)["body_1"].mean((0, 2, 3)) for m in (before, model, graph))
    assert (got - wanted).abs().mean() < 0.1 * (was - wanted).abs().mean()


def test_what_is_held_at_once_does_not_grow_with_depth(monkeypatch):
    """As many tensors as quantize counts on when it asks how many images fit."""
    held, step = [], corrections_module.Stepper.step

    def counted(stepper, node):
        value = step(stepper, node)
        held.append(len(stepper.values))
        return value

    monkeypatch.setattr(corrections_module.Stepper, "step", counted)
    net = sequence(conv(3), *(module for _ in range(8) for module in (nn.ReLU(), conv())))
    correct_activations(*pair(net, BAD.replace(activation_correction="both")), BATCHES)
    assert max(held) <= 5


def test_parts_of_a_concatenation_that_has_a_grid_a_channel():
    recipe = SIMULATED.replace(activation_correction="both", activation_granularity="per_channel")
    model, graph = pair(fire(), recipe)
    assert [c.tensor for c in correct_activations(model, graph, BATCHES)] == ["relu", "last"]


def test_later_layers_see_earlier_ones_corrected():
    model, graph = pair(chain(), BAD.replace(activation_correction="both"))
    before = errors(model, graph)
    corrections = correct_activations(model, graph, BATCHES)
    assert corrections[0].error_before == pytest.approx(before[corrections[0].tensor][0], rel=1e-3)
    assert corrections[-1].error_before < 0.8 * before[corrections[-1].tensor][0]


def test_nothing_is_changed_where_nothing_is_gained():
    model, _ = pair(chain(), Recipe(activation_correction="both"))
    same = copy.deepcopy(model)
    corrections = correct_activations(model, same, BATCHES)
    assert all(c.error_after == c.error_before for c in corrections)
    for (_, layer), (_, other) in zip(layer_nodes(model), layer_nodes(same), strict=True):
        assert torch.equal(layer.weight, other.weight)
        assert torch.equal(layer.bias, other.bias)


def test_what_reads_a_layer_beside_the_path_is_computed_again():
    def forward(net, x):
        y = net.a(x)
        gate = y.softmax(1)
        return net.c(net.b(y.relu()) * gate)

    model, graph = pair(network(forward, a=conv(3), b=conv(), c=conv(8, 4)), BAD.replace(activation_correction="both"))
    last = correct_activations(model, graph, BATCHES)[-1]
    assert errors(model, graph)[last.tensor][0] == pytest.approx(last.error_after, rel=1e-3)


@pytest.mark.parametrize("activation_granularity", ["per_tensor", "per_channel"])
def test_online_ranges_are_those_of_the_running_model(activation_granularity):
    settings = {"statistics": "online", "clip": "laplace", "activation_granularity": activation_granularity}
    settings["activations"] = "int2"  # so few that the range isn't simply all that was seen
    model, graph = pair(chain(), SIMULATED.replace(activation_correction="both", **settings))
    first = correct_activations(model, graph, [ALL])[0]
    got, wanted = values(model)["quantizers_body_2"], values(graph)["body_2"]
    assert float((got - wanted).square().mean()) == pytest.approx(first.error_after, rel=1e-3)


class TestGainless:
    RECIPE = SIMULATED.replace(weights="kmeans2", first="kmeans2", last="kmeans2", activations="int4")

    def test_the_mean_is_all_that_they_take(self):
        found = {}
        for parts in ("mean", "gain", "both"):
            model, graph = pair(chain(), self.RECIPE.replace(activation_correction=parts))
            assert not any(takes_gain(layer) for _, layer in layer_nodes(model))
            weights = [layer.weight.clone() for _, layer in layer_nodes(model)]
            found[parts] = correct_activations(model, graph, BATCHES)
            assert all(torch.equal(layer.weight, w) for (_, layer), w in zip(layer_nodes(model), weights, strict=True))
        for mean, gain, both in zip(*found.values(), strict=True):
            assert both.error_after == pytest.approx(mean.error_after, rel=1e-3)
            assert mean.error_after <= mean.error_before
            assert gain.error_after == gain.error_before
        assert found["mean"][1].error_after < 0.9 * found["mean"][1].error_before

    def test_batch_norms_measured_again_give_back_the_mean(self):
        net = trained_chain()
        model, graph = pair(net, self.RECIPE.replace(batch_norm_reestimation=True))
        reestimate_batch_norms(model, graph, BATCHES)
        for node, norm in (("body_0", net.body[1]), ("body_3", net.body[4])):
            torch.testing.assert_close(values(model)[node].mean((0, 2, 3)), norm.bias.detach(), rtol=1e-3, atol=1e-3)


class TestWeights:
    @pytest.mark.parametrize("parts", ["mean", "variance", "both"])
    def test_simulated_weights_have_their_moments_back_without_images(self, parts):
        model, graph = pair(residual(), SIMULATED.replace(weight_correction=parts))
        quantized = copy.deepcopy(model)
        assert all(c.kept and c.error_before is None for c in correct_weights(model, graph, []))
        for (node, layer), (_, original) in zip(layer_nodes(model), layer_nodes(graph), strict=True):
            start = quantized.get_submodule(str(node.target)).weight
            got, wanted, was = (
                tensor.detach().double().flatten(1) for tensor in (layer.weight, original.weight, start)
            )
            of_mean, of_spread = was if parts == "variance" else wanted, was if parts == "mean" else wanted
            torch.testing.assert_close(got.mean(1), of_mean.mean(1), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(got.std(1), of_spread.std(1), rtol=1e-5, atol=1e-6)

    def test_simulated_weights_are_codes_scales_and_what_is_off_the_grid(self):
        """What a file would hold rebuilds them, and its size counts it."""
        model, graph = pair(residual(), SIMULATED.replace(weight_correction="both"))
        codes = {node: layer.weight_quantizer.quantize(layer.weight) for node, layer in layer_nodes(model)}
        bytes_before = size_bytes(model)
        correct_weights(model, graph, [])
        for node, layer in layer_nodes(model):
            along = (-1, *[1] * (layer.weight.dim() - 1))
            rebuilt = layer.weight_quantizer.dequantize(codes[node]) + layer.weight_shift.view(along)
            torch.testing.assert_close(layer.weight.detach(), rebuilt, rtol=1e-6, atol=1e-7)
        assert size_bytes(model) == bytes_before + sum(4 * len(layer.weight) for _, layer in layer_nodes(model))

    @pytest.mark.parametrize("recipe", [BAD, SIMULATED])
    @pytest.mark.parametrize("net", [chain, residual])
    def test_activations_corrected_after_them_are_judged_on_what_runs(self, net, recipe):
        model, graph = pair(net(), recipe.replace(weight_correction="both", activation_correction="both"))
        correct_weights(model, graph, BATCHES)
        shifts = [layer.weight_shift.clone() for _, layer in layer_nodes(model) if hasattr(layer, "weight_shift")]
        assert bool(shifts) != recipe.deployable
        found = correct_activations(model, graph, BATCHES)
        assert any(correction.kept for correction in found)
        measured = errors(model, graph)
        for correction in found[-2:]:  # those before are moved by the ones that follow
            assert measured[correction.tensor][0] == pytest.approx(correction.error_after, rel=1e-3)

    def test_simulated_weights_keep_their_means_through_the_gain_of_activations(self):
        model, graph = pair(chain(), SIMULATED.replace(weight_correction="both", activation_correction="both"))
        correct_weights(model, graph, [])
        before = {node: layer.weight.detach().clone().flatten(1) for node, layer in layer_nodes(model)}
        correct_activations(model, graph, BATCHES)
        for node, layer in layer_nodes(model):
            got = layer.weight.detach().flatten(1)
            gain = got.std(1) / before[node].std(1)
            torch.testing.assert_close(got, gain[:, None] * before[node], rtol=1e-4, atol=1e-5)

    def test_deployable_a_layer_called_twice_gets_its_gain(self):
        net = network(lambda net, x: net.b(net.a(net.a(x).relu()).relu()), a=conv(3, 3), b=conv(3))
        model, graph = pair(net, BAD.replace(weight_correction="both"))
        found = {correction.tensor: correction for correction in correct_weights(model, graph, BATCHES)}
        assert found["a.weight"].kept
        for name in ("a.weight", "b.weight"):
            got, wanted = (m.get_parameter(name).detach().flatten(1) for m in (model, graph))
            torch.testing.assert_close(got.std(1), wanted.std(1), rtol=1e-4, atol=1e-6)
        assert torch.equal(model.a.weight_quantizer(model.a.weight), model.a.weight)

    def test_also_those_of_layers_called_twice_and_without_a_calibration_set(self):
        def net():
            return network(lambda net, x: net.b(net.a(net.a(x).relu()).relu()), a=conv(3, 3), b=conv(3))

        floats = dict.fromkeys(("activations", "residual", "first", "last"), "float32")
        recipe = SIMULATED.replace(
            **floats, bias="float32", weight_correction="both", overrides=[{"layers": "*", "weights": "int2"}]
        )
        model = quantize(net(), recipe)
        for name in ("a.weight", "b.weight"):
            got, wanted = (m.get_parameter(name).detach().flatten(1) for m in (model, net()))
            torch.testing.assert_close(got.mean(1), wanted.mean(1), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(got.std(1), wanted.std(1), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("parts", ["mean", "variance", "both"])
    @pytest.mark.parametrize(
        "middle", [conv, lambda: nn.ConvTranspose2d(8, 6, 3), lambda: nn.ConvTranspose2d(8, 6, 3, groups=2)]
    )
    def test_deployable_the_means_of_outputs_are_those_of_shifted_weights(self, parts, middle):
        """The weight that a model not to be deployed would have, run on what the corrected model reads there."""
        layer = middle()
        net = sequence(conv(3), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(layer.out_channels, 4, 1))
        with torch.no_grad():
            layer.bias *= 10
        grouped, axis = layer.groups > 1, int(isinstance(layer, nn.ConvTranspose2d))
        model, graph = pair(net, BAD.replace(weight_correction=parts))
        before = copy.deepcopy(model)
        correct_weights(model, graph, BATCHES)
        got, was, original = (m.get_submodule("body.2") for m in (model, before, graph))
        rest = [dim for dim in range(4) if dim != axis]
        (mean, spread), (own_mean, own_spread) = (
            (w.mean(rest, keepdim=True), w.std(rest, keepdim=True))
            for w in (original.weight.detach().double(), was.weight.detach().double())
        )
        parts = {"variance": "none", "both": "mean"}.get(parts, parts) if grouped else parts
        gain = spread / own_spread if parts in ("variance", "both") else 1
        aim = mean if parts in ("mean", "both") else own_mean
        was.double().weight.data = gain * (was.weight.data - own_mean) + aim
        read = values(model)["quantizers_body_1"]
        wanted = was(read.double()).mean((0, 2, 3))
        assert bool(((got(read).mean((0, 2, 3)) - wanted).abs() <= got.bias_quantizer.scale * 0.51).all())

    def test_what_is_reported_is_so(self):
        model, graph = pair(chain(), BAD.replace(weight_correction="both"))
        before = copy.deepcopy(model)
        found = correct_weights(model, graph, BATCHES)
        assert [c.tensor for c in found] == ["body.0", "body.3", "body.6"]
        self.assert_reported(found, before, model, graph)

    @staticmethod
    def assert_reported(found, before, model, graph):
        start, end, expected = map(values, (before, model, graph))
        for correction in found:
            name = correction.tensor.replace(".", "_")
            assert correction.error_after == pytest.approx(
                float((end[name] - expected[name]).square().mean()), rel=1e-3
            )
        first = found[0].tensor.replace(".", "_")
        assert found[0].error_before == pytest.approx(float((start[first] - expected[first]).square().mean()), rel=1e-3)

    def test_as_printed_the_mean_is_scaled_too(self):
        model, graph = pair(chain(), SIMULATED.replace(weight_correction="both", weight_correction_form="paper"))
        before = copy.deepcopy(model)
        correct_weights(model, graph, [])
        for (_, layer), (_, was), (_, original) in zip(*map(layer_nodes, (model, before, graph)), strict=True):
            got, was, wanted = (x.weight.detach().double().flatten(1) for x in (layer, was, original))
            gain = wanted.std(1) / was.std(1)
            torch.testing.assert_close(got.mean(1), gain * wanted.mean(1), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(got.std(1), wanted.std(1), rtol=1e-5, atol=1e-6)

    def test_deployable_the_gain_is_the_weights_alone(self):
        model, graph = pair(chain(), BAD.replace(weight_correction="variance"))
        before = copy.deepcopy(model)
        correct_weights(model, graph, BATCHES)
        assert_deployable(model)
        for (_, layer), (_, was), (_, original) in zip(*map(layer_nodes, (model, before, graph)), strict=True):
            assert torch.equal(layer.weight_quantizer.quantize(layer.weight), was.weight_quantizer.quantize(was.weight))
            spread = original.weight.detach().flatten(1).std(1)
            torch.testing.assert_close(layer.weight.detach().flatten(1).std(1), spread, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("parts", ["mean", "variance", "both"])
    def test_a_grouped_transposed_convolution_takes_the_mean_alone(self, parts):
        net = sequence(conv(3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
        model, graph = pair(net, BAD.replace(weight_correction=parts))
        before = copy.deepcopy(model.get_submodule("body.2"))
        correct_weights(model, graph, BATCHES)
        layer = model.get_submodule("body.2")
        assert torch.equal(layer.weight, before.weight)
        assert torch.equal(layer.bias, before.bias) == (parts == "variance")
        assert torch.equal(layer.bias_quantizer(layer.bias), layer.bias)


def test_batch_norms_measured_again():
    net = trained_chain()
    model, graph = pair(net, BAD.replace(batch_norm_reestimation=True))
    corrections = reestimate_batch_norms(model, graph, BATCHES)
    assert all(c.kept and c.error_after < c.error_before for c in corrections)
    assert_deployable(model)
    for node, norm in (("body_0", net.body[1]), ("body_3", net.body[4])):
        seen = TensorStatistics.from_tensor(values(model)[node], axis=1)
        step = float(model.get_submodule(node.replace("_", ".")).bias_quantizer.scale.max())
        torch.testing.assert_close(seen.mean, norm.bias.detach().double(), rtol=1e-3, atol=step)
        torch.testing.assert_close(seen.variance.sqrt(), norm.weight.detach().double().abs(), rtol=1e-3, atol=1e-3)


def test_batch_norms_are_not_measured_again_on_images_that_tell_less_than_their_training():
    """At 8 bits little is wrong, and two images have other moments than all: then the norms stay what they were."""
    model, graph = pair(trained_chain(), Recipe(batch_norm_reestimation=True))
    before = copy.deepcopy(model)
    corrections = reestimate_batch_norms(model, graph, [ALL[:2]])
    assert [c.tensor for c in corrections] == ["body.0", "body.3"]
    assert all(not c.kept and c.error_after == c.error_before for c in corrections)
    for (_, layer), (_, same) in zip(layer_nodes(model), layer_nodes(before), strict=True):
        assert torch.equal(layer.weight, same.weight)
        assert torch.equal(layer.bias, same.bias)


def test_analytic_correction_needs_no_images_and_lowers_the_means_error():
    floats = dict.fromkeys(("activations", "residual", "first", "last"), "float32")
    recipe = SIMULATED.replace(**floats, bias="float32", overrides=[{"layers": "body.[346]", "weights": "int2"}])
    recipe = recipe.replace(correction_source="analytic")
    plain, corrected = (quantize(chain(), recipe.replace(activation_correction=c)) for c in ("none", "mean"))
    # images on which the first norm's outputs are what it says they are: those it was measured on
    net = chain()
    with torch.no_grad():
        raw = net.body[0](ALL)
        net.body[1].running_mean.copy_(raw.mean((0, 2, 3)))
        net.body[1].running_var.copy_(raw.var((0, 2, 3), correction=0))
    plain, corrected = (quantize(net, recipe.replace(activation_correction=c)) for c in ("none", "mean"))
    assert len(layers_alone(corrected)) == 3
    expected = net.body[:5](ALL).mean((0, 2, 3))
    errors = [(values(m)["body_3"].mean((0, 2, 3)) - expected).abs().mean() for m in (plain, corrected)]
    assert errors[1] < 0.4 * errors[0]


def test_the_order_of_corrections():
    both = SIMULATED.replace(weight_correction="both", batch_norm_reestimation=True, activation_correction="mean")
    assert [(s.carry_out.__name__, s.needs_images, s.mends_means) for s in list_corrections(both)] == [
        ("correct_weights", False, True),
        ("reestimate_batch_norms", True, False),
        ("correct_activations", True, True),
    ]
    analytic = BAD.replace(weight_correction="variance", activation_correction="mean", correction_source="analytic")
    assert [(s.carry_out.__name__, s.needs_images, s.mends_means) for s in list_corrections(analytic)] == [
        ("correct_weights", True, False),
        ("correct_analytically", False, True),
    ]
    assert list_corrections(BAD) == []

"""Tuning brings the outputs nearer to the float network's, keeps codes unless weights learn, repeats, never harms."""

import copy
import re

import pytest
import torch
from networks import images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.calibration.activation_cache import ActivationCache, rows_of
from pytorch_quantizer.calibration.lesson import Lesson, Selection, block_outputs
from pytorch_quantizer.calibration.tune import tune
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.fold import fold


def block(several=False):
    def forward(net, x):
        x = net.relu(net.conv1(x))
        x = net.relu(net.conv2(x) + x)
        logits = net.linear(x.mean((2, 3)))
        return (logits, {"features": x}) if several else logits

    return network(
        forward,
        conv1=nn.Conv2d(3, 8, 3, padding=1),
        conv2=nn.Conv2d(8, 8, 3, padding=1, bias=False),
        relu=nn.ReLU(),
        linear=nn.Linear(8, 5),
    )


def quantized(net=None, **fields):
    net = net or block()
    graph, _ = fold(capture(net, images()))
    settings = {"weights": "int2", "activations": "int2", "weight_narrow": False}
    return pq.quantize(net, pq.Recipe(**settings | fields), CALIBRATION, progress=False), graph


CALIBRATION = [images(32, 3, 8, 8, seed=seed) for seed in range(4)]
ROWS = rows_of(CALIBRATION)
RATES = {"learning_rate": 1e-2, "weight_rate": 2e-2, "progress": False}
UNSEEN = images(64, 3, 8, 8, seed=99)


def error(model, graph):
    with torch.no_grad():
        return float((model(UNSEEN.clone()) - graph(UNSEEN)).square().mean())


def test_outputs_come_nearer_on_images_that_it_never_saw():
    model, graph = quantized()
    before = error(model, graph)
    done = tune(model, graph, ROWS, epochs=15, learning_rate=1e-2, progress=False)
    assert done.kept
    assert done.after < 0.7 * done.before
    assert error(model, graph) < 0.7 * before


def test_codes_of_weights_stay():
    model, graph = quantized()
    layer = model.get_submodule("conv2")
    codes, scale = layer.weight_quantizer.quantize(layer.weight), layer.weight_quantizer.scale.clone()
    tune(model, graph, ROWS, epochs=3, learning_rate=1e-2, progress=False)
    assert torch.equal(layer.weight_quantizer.quantize(layer.weight), codes)
    assert not torch.equal(layer.weight_quantizer.scale, scale)


class TestWeights:
    def test_codes_are_learned_and_bring_outputs_nearer_than_what_is_beside_them_alone(self):
        model, graph = quantized()
        alone, with_weights = copy.deepcopy(model), copy.deepcopy(model)
        tune(alone, graph, ROWS, epochs=15, learning_rate=1e-2, progress=False)
        done = tune(with_weights, graph, ROWS, epochs=15, **RATES)
        assert done.kept
        assert error(with_weights, graph) < 0.8 * error(alone, graph)

    def test_they_are_stored_as_they_were_learned(self, tmp_path):
        model, graph = quantized(weight_rounding="gptq")
        layer = model.get_submodule("conv2")
        codes = layer.weight_quantizer.quantize(layer.weight)
        done = tune(model, graph, ROWS, epochs=5, **RATES)
        assert not torch.equal(layer.weight_quantizer.quantize(layer.weight), codes)
        pq.save(model, tmp_path / "model.safetensors")
        again = pq.load(tmp_path / "model.safetensors")
        assert torch.equal(again(UNSEEN), model(UNSEEN.clone()))
        lesson = Lesson(graph, block_outputs(model, graph))
        assert lesson.mean_loss(again, Selection(ROWS, torch.device("cpu")), 32) == pytest.approx(done.after, rel=1e-6)

    def test_they_begin_at_the_codes_that_were_chosen(self):
        model, graph = quantized(weight_rounding="second_order")
        done = tune(model, graph, ROWS, epochs=1, learning_rate=1e-9, weight_rate=1e-9, progress=False)
        assert done.after == pytest.approx(done.before, rel=1e-4)

    def test_those_on_other_grids_keep_their_codes(self):
        model, graph = quantized(weights="pot4", deployable=False, bias="float32")
        layer = model.get_submodule("conv2")
        codes = layer.weight_quantizer.quantize(layer.weight)
        tune(model, graph, ROWS, epochs=3, **RATES)
        assert torch.equal(layer.weight_quantizer.quantize(layer.weight), codes)


def test_the_seed_decides():
    model, graph = quantized()
    results = []
    for seed in (1, 1, 2):
        tuned = copy.deepcopy(model)
        tune(tuned, graph, ROWS, epochs=2, seed=seed, progress=False)
        results.append(tuned.state_dict())
    first, second, third = results
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)


def test_what_only_gets_worse_is_not_kept():
    model, graph = quantized()
    before = copy.deepcopy(model.state_dict())
    done = tune(model, graph, ROWS, epochs=1, learning_rate=1.0, progress=False)
    assert not done.kept
    assert done.after > done.before
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_diverges_says_what_to_change():
    model, graph = quantized()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"diverged .* lower learning rate"):
        tune(model, graph, ROWS, epochs=1, learning_rate=50.0, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def inner_error(model, graph):
    names = block_outputs(model, graph)
    lesson = Lesson(graph, names, 1.0)
    with torch.no_grad():
        both = [lesson.with_values(network)(UNSEEN.clone())[1] for network in (model, graph)]
    return sum(float((a - b).square().mean() / b.square().mean()) for a, b in zip(*both, strict=True))


def test_blocks_come_nearer_where_they_count():
    model, graph = quantized()
    alone, with_blocks = copy.deepcopy(model), copy.deepcopy(model)
    tune(alone, graph, ROWS, epochs=10, progress=False)
    tune(with_blocks, graph, ROWS, epochs=10, block_weight=3.0, progress=False)
    assert inner_error(with_blocks, graph) < 0.9 * min(inner_error(alone, graph), inner_error(model, graph))


def test_mirrored_images_make_a_difference():
    model, graph = quantized()
    plain, turned = copy.deepcopy(model), copy.deepcopy(model)
    tune(plain, graph, ROWS, epochs=2, progress=False)
    done = tune(turned, graph, ROWS, epochs=2, mirror=True, progress=False)
    assert done.kept
    assert not torch.equal(plain(UNSEEN.clone()), turned(UNSEEN.clone()))


def test_what_is_no_image_has_no_mirror_image():
    net = network(lambda net, x: net.linear(x), linear=nn.Linear(6, 3))
    rows = images(32, 6)
    graph, _ = fold(capture(net, rows))
    model = pq.quantize(net, pq.Recipe(weights="int2", activations="int2"), rows, progress=False)
    with pytest.raises(InputError, match=r"tuning_mirror is for images \[C, H, W\], got \[6\]"):
        tune(model, graph, rows_of([rows]), mirror=True, progress=False)


def test_several_outputs():
    model, graph = quantized(block(several=True))
    done = tune(model, graph, ROWS, epochs=5, learning_rate=1e-2, progress=False)
    assert done.kept


def test_every_image_is_learned_from():
    model, graph = quantized()
    results = []
    for changed in (None, 0, 63, 127):
        rows = torch.cat(CALIBRATION)
        if changed is not None:
            rows[changed] += 1
        tuned = copy.deepcopy(model)
        tune(tuned, graph, rows_of([rows]), epochs=1, progress=False)
        results.append(tuned(UNSEEN.clone()))
    assert not any(torch.equal(results[0], other) for other in results[1:])


def test_no_images():
    model, graph = quantized()
    with pytest.raises(InputError, match="tuning learns on images, got none"):
        tune(model, graph, ActivationCache().room(4, (3, 8, 8)), progress=False)


def test_images_of_two_sizes():
    with pytest.raises(InputError, match=r"learning needs images of one size, got \[3, 9, 9\] behind \[3, 8, 8\]"):
        rows_of([images(8, 3, 8, 8), images(8, 3, 9, 9)])


class TestAsAStepOfARecipe:
    FEW = pq.Recipe(weights="int2", activations="int2", tuning_epochs=1)

    def test_it_is_done_and_told_and_stored(self, tmp_path):
        plain, graph = quantized()
        model, _ = quantized(tuning_epochs=10, tuning_rate=1e-2, tuning_blocks=0.5, tuning_mirror=True)
        assert error(model, graph) < 0.8 * error(plain, graph)
        [note] = [note for note in model.notes if note.startswith("tuning: ")]
        assert "learned by distillation" in note
        pq.save(model, tmp_path / "model.safetensors")
        assert torch.equal(pq.load(tmp_path / "model.safetensors")(UNSEEN), model(UNSEEN.clone()))

    def test_weights_learn_where_it_says_so(self):
        plain, _ = quantized(tuning_epochs=5, tuning_rate=1e-2)
        model, graph = quantized(tuning_epochs=5, tuning_rate=1e-2, tuning_weight_rate=2e-2)
        assert error(model, graph) < error(plain, graph)
        assert "tuning: weights, scales, biases and steps learned by distillation" in model.notes[-1]

    def test_where_no_weight_can_learn_it_is_said(self):
        types = dict.fromkeys(("weights", "first", "last"), "pot4")
        settings = types | {"deployable": False, "bias": "float32", "tuning_epochs": 2}
        with pytest.warns(UserWarning, match="tuning_weight_rate changed nothing: no weight is on a uniform grid"):
            model, _ = quantized(**settings, tuning_weight_rate=2e-3)
        assert "tuning: scales, biases and steps" in model.notes[-1]

    def test_it_follows_corrections(self):
        model, _ = quantized(activation_correction="both", tuning_epochs=1)
        assert [note.split(":")[0] for note in model.notes] == ["activation_correction", "tuning"]

    def test_the_model_it_was_made_from_is_untouched(self):
        net = block()
        before = copy.deepcopy(net.state_dict())
        quantized(net, tuning_epochs=1)
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())

    def test_weights_alone_are_tuned_too(self):
        net = block()
        recipe = pq.Recipe(weights="int2", activations="float32", bias="float32", deployable=False, tuning_epochs=2)
        assert "tuning: " in pq.quantize(net, recipe, CALIBRATION, progress=False).notes[-1]

    def test_a_limit_of_memory_changes_nothing(self):
        limited = pq.quantize(block(), self.FEW, CALIBRATION, max_memory=2**30, progress=False)
        free = pq.quantize(block(), self.FEW, CALIBRATION, progress=False)
        wanted = free.state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in limited.state_dict().items())

    def test_a_limit_below_what_it_takes_says_the_least(self):
        with pytest.raises(InputError, match=r"at least (\d+) MiB, which tuning the network takes, got 10 MiB") as said:
            pq.quantize(block(), self.FEW, CALIBRATION, max_memory=10 * 2**20, progress=False)
        least = int(re.search(r"least (\d+) MiB", str(said.value))[1])
        pq.quantize(block(), self.FEW, CALIBRATION, max_memory=least * 2**20, progress=False)

    def test_a_network_in_which_nothing_can_learn_stays_as_it_is(self):
        net, recipe = sequence(nn.ReLU(), nn.Flatten()), pq.Recipe(tuning_epochs=1, activations="int4")
        model = pq.quantize(net, recipe, images(4, 3, 8, 8), progress=False)
        assert any("left as they were" in note for note in model.meta["notes"])

    def test_images_of_several_sizes(self):
        with pytest.raises(InputError, match=r"learning needs images of one size, got \[3, 9, 9\] behind \[3, 8, 8\]"):
            pq.quantize(block(), self.FEW, [images(8, 3, 8, 8), images(8, 3, 9, 9)], progress=False)

    def test_no_images(self):
        recipe = pq.Recipe(weights="int2", activations="float32", bias="float32", deployable=False, tuning_epochs=2)
        with pytest.raises(InputError, match="tuning learns on images: give calibration="):
            pq.quantize(block(), recipe, progress=False)

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"tuning_epochs": -1}, "tuning_epochs must be a whole number of 0 or more, got -1"),
            ({"tuning_images": 0}, "tuning_images must be a whole number of 1 or more"),
            ({"tuning_blocks": -0.5}, "tuning_blocks must be a weight of 0 or more, got -0.5"),
            ({"tuning_blocks": float("nan")}, "tuning_blocks must be a weight of 0 or more, got nan"),
            ({"tuning_weight_rate": -0.1}, "tuning_weight_rate must be from 0 to 1, .* got -0.1"),
            ({"tuning_weight_rate": True}, "tuning_weight_rate must be from 0 to 1, .* got True"),
            ({"tuning_mirror": 1}, "tuning_mirror must be true or false, got 1"),
            ({"tuning_rate": 0}, "tuning_rate must be above 0 and at most 1, a scale's share, got 0"),
            ({"tuning_rate": 1e39}, "tuning_rate must be above 0 and at most 1, a scale's share, got 1e\\+39"),
            ({"tuning_batch": True}, "tuning_batch must be a whole number of 1 or more, got True"),
        ],
    )
    def test_impossible_fields(self, fields, said):
        with pytest.raises(InputError, match=said):
            pq.Recipe(**fields)

"""sensitivity(): each layer alone and all but it, against the same networks put together by other means."""

import copy
import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from networks import images, network, sequence
from torch import nn

from pytorch_quantizer import InputError, Override, Recipe, evaluate, quantize
from pytorch_quantizer.evaluation import sqnr_db
from pytorch_quantizer.evaluation.sensitivity import chance, corrections_of, ranked, sensitivity, without_corrections
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, load_model, resolved

W4A4 = Recipe(weights="int4", activations="int4", first="int4", last="int4", residual="int8")
FLOAT = {"weights": "float32", "activations": "float32"}
RATES = ["alone_top1", "all_but_top1"]


def chain():
    net = sequence(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten()),
        nn.Linear(96, 5),
    )
    with torch.no_grad():  # so that its answers differ from image to image
        net.body[6].bias -= net(images(64, 3, 8, 8)).mean(0)
    return net


def batches(model, n=64):
    """Two batches whose labels are the model's own answers, but for every fifth."""
    x = images(n, 3, 8, 8)
    with torch.no_grad():
        labels = model(x).argmax(1)
    labels[::5] = (labels[::5] + 1) % 5
    return list(zip(x.split(n // 2), labels.split(n // 2), strict=True))


def measured(model, recipe, **options):
    return sensitivity(model, recipe, [images()], batches(model), progress=False, **options).set_index("layer")


@torch.no_grad()
def scores(quantized, model):
    """(top-1, SQNR of the logits) against the float model, on the images that measured() takes."""
    given = batches(model)
    x = torch.cat([batch for batch, _ in given])
    return evaluate(quantized, given, progress=False).top1, sqnr_db(model(x), quantized(x))


def floated(recipe, *layers):
    """The recipe with these layers in float32."""
    return recipe.replace(deployable=False, overrides=[Override(layer, **FLOAT) for layer in layers])


def assert_row(row, which, expected):
    assert row[f"{which}_top1"] == expected[0]
    assert row[f"{which}_sqnr_db"] == pytest.approx(expected[1], abs=0.01)


class TestAgainstOverrides:
    """In a chain no two layers read one tensor, so float32 overrides make the same networks."""

    @pytest.fixture(scope="class")
    @staticmethod
    def table():
        return measured(chain(), W4A4)

    def test_rows_are_the_layers(self, table):
        assert set(table.index) == {"body.0", "body.3", "body.6"}
        assert set(table["weights"]) == {"int4"}
        assert set(table["activations"]) == {"uint4"}

    @pytest.mark.parametrize("layer", ["body.0", "body.3", "body.6"])
    def test_all_but(self, table, layer):
        net = chain()
        expected = quantize(net, floated(W4A4, layer), [images()], progress=False)
        assert_row(table.loc[layer], "all_but", scores(expected, net))

    @pytest.mark.parametrize("layer", ["body.0", "body.3", "body.6"])
    def test_alone(self, table, layer):
        net = chain()
        others = {"body.0", "body.3", "body.6"} - {layer}
        expected = quantize(net, floated(W4A4, *others), [images()], progress=False)
        assert_row(table.loc[layer], "alone", scores(expected, net))

    def test_the_whole_and_the_float_network(self, table):
        net = chain()
        top1, sqnr = scores(quantize(net, W4A4, [images()], progress=False), net)
        assert table.attrs["quantized_top1"] == top1
        assert table.attrs["quantized_sqnr_db"] == pytest.approx(sqnr, abs=0.01)
        assert table.attrs["float_top1"] == evaluate(net, batches(net), progress=False).top1
        assert table.attrs["samples"] == 64

    def test_drop_and_gain(self, table):
        assert (table["alone_drop"] != 0).any()
        assert (table["all_but_gain"] != 0).any()
        assert (table["alone_drop"] == table.attrs["float_top1"] - table["alone_top1"]).all()
        assert (table["all_but_gain"] == table["all_but_top1"] - table.attrs["quantized_top1"]).all()

    @pytest.mark.parametrize(("what", "other"), [("weights", "activations"), ("activations", "weights")])
    def test_weights_or_activations_only(self, what, other):
        net, table = chain(), measured(chain(), W4A4, what=what)
        recipe = W4A4.replace(deployable=False, overrides=[Override("*", **{other: "float32"})])
        top1, sqnr = scores(quantize(net, recipe, [images()], progress=False), net)
        assert table.attrs["quantized_top1"] == top1
        assert table.attrs["quantized_sqnr_db"] == pytest.approx(sqnr, abs=0.01)
        assert set(table[other]) == {"float32"}
        lonely = recipe.replace(overrides=[*recipe.overrides, *floated(recipe, "body.0", "body.6").overrides])
        assert_row(table.loc["body.3"], "alone", scores(quantize(net, lonely, [images()], progress=False), net))


class TestExtremes:
    def test_the_bad_layer_is_first(self):
        bad = Recipe(overrides=[Override("body.3", weights="int2")])
        assert measured(chain(), bad).index[0] == "body.3"

    def test_a_layer_in_float_changes_nothing(self):
        row = measured(chain(), floated(W4A4, "body.3")).loc["body.3"]
        assert (row["alone_drop"], row["all_but_gain"], row["alone_p"]) == (0, 0, 1)
        assert row["alone_sqnr_db"] == math.inf
        assert (row["weights"], row["activations"]) == ("float32", "float32")

    def test_all_but_the_only_layer_is_float(self):
        net = sequence(nn.Flatten(), nn.Linear(192, 5))
        table = measured(net, W4A4)
        row = table.loc["body.1"]
        assert row["all_but_top1"] == table.attrs["float_top1"]
        assert row["all_but_sqnr_db"] == math.inf
        assert row["alone_top1"] == table.attrs["quantized_top1"]
        assert row["alone_sqnr_db"] == table.attrs["quantized_sqnr_db"] < 40

    def test_every_variant_starts_from_the_same_quantizers(self):
        random = W4A4.replace(rounding="stochastic", deployable=False)
        table = measured(sequence(nn.Flatten(), nn.Linear(192, 5)), random)
        assert table.loc["body.1", "alone_sqnr_db"] == table.attrs["quantized_sqnr_db"]

    def test_the_model_is_left_as_it_was(self):
        net = chain().train()
        before = copy.deepcopy(net.state_dict())
        sensitivity(net, W4A4, [images()], batches(chain()), progress=False)
        assert net.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())

    def test_batches_may_be_iterators(self):
        table = sensitivity(chain(), W4A4, iter([images()]), iter(batches(chain())), progress=False).set_index("layer")
        pd.testing.assert_frame_equal(table, measured(chain(), W4A4))


def residual_net():
    """x → a → ReLU → r; r + b(r) → linear: the convolution and the addition read one tensor."""

    def forward(net, x):
        r = F.relu(net.a(x))
        return net.c((net.b(r) + r).flatten(1))

    return network(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3, padding=1), c=nn.Linear(144, 5))


def grid(model, name):
    return next(site.quantizer for site in model.sites if site.name == name)


class TestSharedTensors:
    """Each reader's row holds its own reading of the tensor, not its neighbour's."""

    @pytest.fixture(params=[False, True], ids=["one grid", "a wide twin"])
    def case(self, request):
        recipe = W4A4.replace(wide_residual=request.param)
        return residual_net(), recipe, quantize(residual_net(), recipe, [images()], progress=False)

    def tensors(self, net):
        """Of the float network: x, r, b(r)."""
        x = torch.cat([batch for batch, _ in batches(net)])
        r = F.relu(net.a(x))
        return x, r, net.b(r)

    def sqnr(self, net, total):
        x = torch.cat([batch for batch, _ in batches(net)])
        return sqnr_db(net(x), net.c(total.flatten(1)))

    @torch.no_grad()
    def test_the_addition_alone(self, case):
        net, recipe, model = case
        _, r, b = self.tensors(net)
        mine = grid(model, "relu:wide" if recipe.wide_residual else "relu")
        row = measured(net, recipe).loc["add"]
        assert row["weights"] == ""
        assert row["alone_sqnr_db"] == pytest.approx(self.sqnr(net, grid(model, "b")(b) + mine(r)), abs=0.01)

    @torch.no_grad()
    def test_the_convolution_alone(self, case):
        net, recipe, model = case
        _, r, _ = self.tensors(net)
        layer = model.get_submodule("b")
        b = F.conv2d(grid(model, "relu")(r), layer.weight, layer.bias, padding=1)
        row = measured(net, recipe).loc["b"]
        assert row["alone_sqnr_db"] == pytest.approx(self.sqnr(net, b + r), abs=0.01)

    @torch.no_grad()
    def test_all_but_the_addition(self, case):
        net, recipe, model = case
        x, _, _ = self.tensors(net)
        r = F.relu(model.get_submodule("a")(grid(model, "x")(x)))
        total = model.get_submodule("b")(grid(model, "relu")(r)) + r
        logits = model.get_submodule("c")(grid(model, "add")(total).flatten(1))
        row = measured(net, recipe).loc["add"]
        assert row["all_but_sqnr_db"] == pytest.approx(sqnr_db(net(x), logits), abs=0.01)

    def test_rows_add_up_to_the_whole(self, case):
        net, recipe, model = case
        table = measured(net, recipe)
        assert set(table.index) == {"a", "b", "add", "c"}
        top1, sqnr = scores(model, net)
        assert table.attrs["quantized_top1"] == top1
        assert table.attrs["quantized_sqnr_db"] == pytest.approx(sqnr, abs=0.01)

    @torch.no_grad()
    def test_a_concatenation_holds_its_result(self):
        net = network(
            lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 1).flatten(1)),
            a=nn.Conv2d(3, 2, 3),
            b=nn.Conv2d(3, 3, 3),
            c=nn.Linear(180, 5),
        )
        model = quantize(net, W4A4, [images()], progress=False)
        x = torch.cat([batch for batch, _ in batches(net)])
        row = measured(net, W4A4).loc["cat"]
        expected = net.c(grid(model, "cat")(torch.cat([net.a(x), net.b(x)], 1)).flatten(1))
        assert row["tensors"] == "cat"
        assert row["alone_sqnr_db"] == pytest.approx(sqnr_db(net(x), expected), abs=0.01)

    def test_a_layer_called_twice_has_a_row_a_call(self):
        net = network(
            lambda net, x: net.c(net.a(F.relu(net.a(x))).flatten(1)),
            a=nn.Conv2d(3, 3, 3, padding=1),
            c=nn.Linear(192, 5),
        )
        table = measured(net, W4A4)
        assert set(table.index) == {"a", "a_1", "c"}
        assert table.loc["a", "alone_sqnr_db"] < math.inf


class TestRanking:
    def rows(self, **columns):
        return pd.DataFrame({"layer": list("abc"), **columns})

    def test_a_drop_that_chance_explains_counts_for_nothing(self):
        table = self.rows(alone_drop=[0.01, 0.0, -0.02], alone_p=[0.5, 1.0, 0.001], alone_sqnr_db=[30.0, 20.0, 10.0])
        assert list(ranked(table)["layer"]) == ["c", "b", "a"]

    def test_one_that_it_does_not_comes_first(self):
        table = self.rows(alone_drop=[0.1, 0.0, 0.2], alone_p=[0.001, 1.0, 0.0], alone_sqnr_db=[30.0, 20.0, 25.0])
        assert list(ranked(table)["layer"]) == ["c", "a", "b"]

    def test_chance_is_a_coin_for_each_answer_that_changed(self):
        before, after = torch.ones(10, dtype=torch.bool), torch.ones(10, dtype=torch.bool)
        assert chance(before, after) == 1
        after[:6] = False
        assert chance(before, after) == pytest.approx(2 * 0.5**6)
        before[0], after[0] = False, True
        assert chance(before, after) == pytest.approx(2 * (1 + 6) * 0.5**6)


class TestCorrections:
    def test_are_left_out(self):
        corrected = W4A4.replace(equalize=True, weight_correction="both", activation_correction="mean")
        assert corrections_of(corrected) == ["equalize", "weight_correction", "activation_correction"]
        assert without_corrections(corrected) == W4A4
        assert corrections_of(W4A4) == []
        pd.testing.assert_frame_equal(measured(chain(), corrected), measured(chain(), W4A4))

    def test_so_is_what_learns_with_its_settings(self):
        learned = W4A4.replace(reconstruction="block", reconstruction_iterations=1, tuning_epochs=1, tuning_rate=0.5)
        assert corrections_of(learned) == ["reconstruction", "tuning_epochs"]
        assert without_corrections(learned) == W4A4


class TestMistakes:
    def test_an_unknown_what(self):
        with pytest.raises(InputError, match="what must be one of both, weights, activations, got 'biases'"):
            measured(chain(), W4A4, what="biases")

    def test_nothing_quantized(self):
        recipe = W4A4.replace(deployable=False, overrides=[Override("*", weights="float32")])
        with pytest.raises(InputError, match="quantizes no weights: nothing to rank"):
            measured(chain(), recipe, what="weights")

    def test_nothing_to_evaluate(self):
        with pytest.raises(InputError, match="the loader gave no images"):
            sensitivity(chain(), W4A4, [images()], [], progress=False)

    def test_nothing_to_calibrate(self):
        with pytest.raises(InputError, match="calibration"):
            sensitivity(chain(), W4A4, None, batches(chain()), progress=False)


def test_a_bad_layer_of_the_digits_network_is_first():
    config = resolved(InferenceConfig())
    test, calibration, _ = load_images(config)
    model = load_model(config, test)
    x = torch.stack([test[i][0] for i in range(0, 540, 12)])
    labels = torch.tensor([test[i][1] for i in range(0, 540, 12)])
    drawn = [torch.stack([calibration[i][0] for i in range(64)])]
    recipe = Recipe(overrides=[Override("layer2.1.conv2", weights="int1")])
    table = sensitivity(model, recipe, drawn, [(x, labels)], what="weights", progress=False)
    assert table["layer"][0] == "layer2.1.conv2"
    assert table["alone_sqnr_db"][0] < table["alone_sqnr_db"][1] - 10
    assert len(table) == 20

"""Bits divided among channels and layers: the total is kept, and who is quieter gets fewer."""

from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from networks import images, sequence
from torch import nn

from pytorch_quantizer import InputError, IntQuantizer, Override, Recipe, Site, TensorStatistics, quantize
from pytorch_quantizer.calibration.allocate import mix_precisions
from pytorch_quantizer.quantization.distributions import DISTRIBUTIONS, Laplace
from pytorch_quantizer.quantization.qtypes.allocated_quantizer import AllocatedQuantizer, MidTreadQuantizer

PAPER = Recipe(
    activations="int4",
    activation_granularity="per_channel",
    activation_allocation="bits",
    weight_allocation="bits",
    weights="int4",
    deployable=False,
)


def net():
    """Three convolutions and a linear layer, channels from quiet to loud."""
    made = sequence(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 8, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 5),
    )
    with torch.no_grad():
        for layer in (made.body[2], made.body[4]):
            layer.weight *= 2.0 ** torch.linspace(-2, 2, len(layer.weight)).view(-1, 1, 1, 1)
    return made


def by_name(model):
    return {site.name: site for site in model.sites}


def test_each_tensor_keeps_its_mean_bits():
    found = by_name(quantize(net(), PAPER, [images()]))
    for name in ("body.2.weight", "body.4.weight", "body.1", "body.3"):
        assert isinstance(found[name].quantizer, AllocatedQuantizer)
        assert found[name].quantizer.mean_bits == 4
    assert len(set(found["body.2.weight"].quantizer.channel_bits.tolist())) > 1
    assert found["body.0.weight"].quantizer.mean_bits == 8  # the first layer's


def test_a_quiet_channel_gets_fewer_bits():
    model = net()
    with torch.no_grad():
        model.body[0].weight[3] *= 1e-3
        model.body[0].bias[3] = 0
    found = by_name(quantize(model, PAPER, [images()]))
    bits = found["body.1"].quantizer.channel_bits
    assert bits[3] == bits.min() < 4


def test_levels_that_are_no_powers_of_two():
    recipe = PAPER.replace(weight_allocation="midtread", activation_allocation="midtread")
    found = by_name(quantize(net(), recipe, [images()]))
    assert isinstance(found["body.2.weight"].quantizer, MidTreadQuantizer)
    assert found["body.2.weight"].quantizer.levels.sum() <= 32 * 2**4
    assert (found["body.2.weight"].quantizer.levels % 2 == 1).all()


def test_a_constant_tensor_is_named_or_runs():
    model = quantize(net(), PAPER, [torch.zeros(2, 3, 8, 8)])
    assert torch.isfinite(model(torch.zeros(2, 3, 8, 8))).all()


@pytest.mark.parametrize(("which", "other"), [("weight", "activation"), ("activation", "weight")])
def test_each_kind_of_tensor_has_a_quota_of_its_own(which, other):
    found = by_name(quantize(net(), PAPER.replace(**{f"{other}_allocation": "none"}), [images()]))
    allocated = {isinstance(found[name].quantizer, AllocatedQuantizer): name for name in ("body.2.weight", "body.1")}
    assert allocated == {which == "weight": "body.2.weight", which == "activation": "body.1"}


@pytest.mark.parametrize("quota", ["bits", "midtread"])
def test_everything_but_the_bits_stays_as_it_was_asked_for(quota):
    recipe = PAPER.replace(weight_clip="laplace", clip="mse", rounding="stochastic")
    plain = recipe.replace(weight_allocation="none", activation_allocation="none")
    recipe = recipe.replace(weight_allocation=quota, activation_allocation=quota)
    found, expected = (by_name(quantize(net(), r, [images()])) for r in (recipe, plain))
    for name in ("body.2.weight", "body.1"):
        got, wanted = found[name].quantizer, expected[name].quantizer
        assert isinstance(got, AllocatedQuantizer)
        for setting in ("axis", "clip", "domain", "across_batches", "rounding", "signed"):
            assert getattr(got, setting) == getattr(wanted, setting), setting


def test_no_channel_of_few_bits_gets_more_than_eight():
    model = net()
    with torch.no_grad():
        model.body[2].weight[5] *= 1e6
    bits = by_name(quantize(model, PAPER, [images()]))["body.2.weight"].quantizer.channel_bits
    assert bits.max() == bits[5] == 8


def test_levels_are_odd_only_where_values_have_two_signs():
    recipe = PAPER.replace(activation_allocation="midtread", weight_allocation="midtread")
    levels = by_name(quantize(net(), recipe, [images()]))["body.3"].quantizer.levels
    assert (levels % 2 == 0).any()


def test_what_allows_no_allocation_is_named():
    poisoned = images()
    poisoned[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"^(x|body\.1): "):
        quantize(net(), PAPER.replace(first="int4"), [poisoned])


class TestMixedPrecision:
    RECIPE = Recipe(weights="int4", activations="int4", mixed_precision="weights")

    def bits(self, model):
        return {
            site.name: (site.quantizer.bits, model.get_parameter(site.node).numel())
            for site in model.sites
            if site.kind == "weight"
        }

    def test_takes_bits_from_who_needs_them_least(self):
        """Two layers of one size: of weights ±1 rounding makes more noise to signal than of single large ones."""
        model = sequence(*(nn.Conv2d(64, 64, 1) for _ in range(4)))
        with torch.no_grad():
            model.body[1].weight.copy_(model.body[1].weight.sign())
            model.body[2].weight.copy_(torch.eye(64).view(64, 64, 1, 1))
        bits = self.bits(quantize(model, self.RECIPE, [images(2, 64, 6, 6)]))
        assert bits["body.1.weight"][0] > 4 > bits["body.2.weight"][0]
        assert bits["body.1.weight"][0] + bits["body.2.weight"][0] <= 8
        assert bits["body.0.weight"][0] == bits["body.3.weight"][0] == 8

    @pytest.mark.parametrize("prior", ["laplace", "gaussian"])
    def test_weights_of_different_sizes_are_divided_as_of_all_choices_the_best(self, prior):
        layers = [
            nn.Conv2d(3, 16, 1),
            nn.Conv2d(16, 32, 3),
            nn.Conv2d(32, 8, 1),
            nn.Conv2d(8, 24, 1),
            nn.Conv2d(24, 2, 1),
        ]
        model = sequence(*layers)
        with torch.no_grad():
            layers[1].weight.pow_(5)
            layers[2].weight *= 10
            layers[3].weight *= 4.0 ** torch.arange(24).sub(12).view(-1, 1, 1, 1)
        middle = [layer.weight.detach().double().flatten(1) for layer in layers[1:4]]
        sizes = [weight.numel() for weight in middle]
        spreads = [weight.var(1, correction=0).sum() for weight in middle]
        b = [(weight - weight.mean(1, keepdim=True)).abs().mean(1).square().sum() for weight in middle]
        shares = [float(x / y) for x, y in zip(b, spreads, strict=True)] if prior == "laplace" else [1.0] * 3
        unit = DISTRIBUTIONS[prior]

        def cost(widths):
            return sum(share * unit.minimum_mse(width) for share, width in zip(shares, widths, strict=True))

        budget = 4 * sum(sizes)
        choices = product(range(2, 9), repeat=3)
        fitting = [c for c in choices if sum(n * width for n, width in zip(sizes, c, strict=True)) <= budget]
        bits = self.bits(quantize(model, self.RECIPE.replace(allocation_prior=prior), [images()]))
        found = tuple(bits[f"body.{index}.weight"][0] for index in (1, 2, 3))
        assert found in fitting
        assert (found == (4, 4, 4)) == (prior == "gaussian")
        assert cost(found) == pytest.approx(min(map(cost, fitting)), rel=1e-9)

    @pytest.mark.parametrize("what", ["weights", "activations"])
    def test_what_an_override_asks_for_stays(self, what):
        model = sequence(*(nn.Conv2d(16, 16, 1) for _ in range(5)))
        with torch.no_grad():
            model.body[2].weight.copy_(torch.eye(16).view(16, 16, 1, 1))  # needs least
        given = Override("body.2", **{what: "int7"})
        recipe = self.RECIPE.replace(mixed_precision=what, mixed_precision_budget=3, overrides=(given,))
        found = by_name(quantize(model, recipe, [images(2, 16, 6, 6)]))
        assert found["body.2.weight" if what == "weights" else "body.1"].quantizer.bits == 7

    def test_both_are_each_by_itself_behind_what_was_overridden_already(self):
        given = Override("body.0", weights="int6")
        found = {}
        for what in ("weights", "activations", "both"):
            recipe = self.RECIPE.replace(mixed_precision=what, mixed_precision_budget=5, overrides=(given,))
            found[what] = quantize(net(), recipe, [images()]).recipe.overrides
            assert found[what][0] == given
            assert len(found[what]) > 1
        assert found["both"] == found["weights"] + found["activations"][1:]

    def test_is_deployable_and_its_recipe_can_be_used_again(self):
        mixed = quantize(net(), self.RECIPE, [images()])
        assert mixed.recipe.deployable
        assert mixed.recipe.mixed_precision == "none"
        again = quantize(net(), mixed.recipe, [images()])
        assert torch.equal(again(images()), mixed(images()))

    @pytest.mark.parametrize("budget", [2, 2.5, 3.75, 5.2])
    def test_a_budget_of_its_own_is_kept_and_spent(self, budget):
        model = sequence(*(nn.Conv2d(16, 16, 1) for _ in range(7)))
        recipe = self.RECIPE.replace(mixed_precision_budget=budget)
        middle = [bits for bits, _ in self.bits(quantize(model, recipe, [images(2, 16, 6, 6)])).values()][1:-1]
        assert sum(middle) == int(budget * len(middle))  # layers of one size: to the last whole bit

    def test_a_budget_that_cannot_be_met(self):
        """What an addition reads keeps its 4 bits: 3 bits a value are too few."""
        with pytest.raises(InputError, match=r"mixed_precision_budget must be at least 4\.00 bits .* activations"):
            TestShares().mixed({"x": ("a", "add"), "y": ("b", "add")}, {"x": 1.0, "y": 1.0}, {"x": 9, "y": 9}, budget=3)

    def test_activations(self):
        mixed = quantize(net(), self.RECIPE.replace(mixed_precision="activations"), [images()])
        sites = {site.name: site.quantizer.bits for site in mixed.sites if site.name in ("body.1", "body.3")}
        values = {"body.1": 16 * 64, "body.3": 32 * 64}
        assert sum(sites[name] * values[name] for name in sites) <= 4 * sum(values.values())
        assert sites["body.1"] >= sites["body.3"]
        assert self.bits(mixed)["body.2.weight"][0] == 4

    def test_one_bit_takes_no_part(self):
        mixed = quantize(net(), self.RECIPE.replace(weights="int1"), [images()])
        assert {width for width, _ in self.bits(mixed).values()} == {1, 8}


def test_online_activations_have_nothing_to_be_allocated_by():
    with pytest.raises(InputError, match="set statistics offline"):
        PAPER.replace(statistics="online")


class TestShares:
    """mix_precisions on tensors whose noise to signal is prescribed: b² over σ²."""

    def mixed(self, readers, shares, sizes, budget=None):
        sites, statistics, nodes = [], {}, []
        for name, read_by in readers.items():
            quantizer = IntQuantizer(4, signed=False, symmetric=False)
            sites.append(Site(name, "activation", read_by, quantizer, node=name, observed=name))
            measured = TensorStatistics.from_tensor(torch.linspace(-1, 1, 10))
            spread = measured.variance.mul(shares[name]).sqrt()
            statistics[name] = replace(measured, abs_dev=spread)
            nodes.append(SimpleNamespace(name=name, meta={"shape": (2, sizes[name])}))
        graph = SimpleNamespace(graph=SimpleNamespace(nodes=nodes))
        recipe = Recipe(activations="int4", mixed_precision="activations", mixed_precision_budget=budget)
        found = mix_precisions(graph, tuple(sites), statistics, recipe)
        return {override.layers: override.activations for override in found.overrides}

    @pytest.mark.parametrize("sizes", [(10, 10, 10), (10, 9, 30), (40, 20, 10)])
    def test_are_the_best_of_all_that_fit_and_only_what_changes_is_overridden(self, sizes):
        shares, sizes = {"x": 1.0, "y": 1 / 20, "z": 1 / 4}, dict(zip("xyz", sizes, strict=True))
        fitting = [
            dict(zip("xyz", widths, strict=True))
            for widths in product(range(2, 9), repeat=3)
            if sum(width * size for width, size in zip(widths, sizes.values(), strict=True)) <= 4 * sum(sizes.values())
        ]
        best = min(fitting, key=lambda widths: sum(shares[n] * Laplace().minimum_mse(w) for n, w in widths.items()))
        found = self.mixed({"x": ("a", "a2"), "y": ("b",), "z": ("c",)}, shares, sizes)
        readers = {"x": ("a", "a2"), "y": ("b",), "z": ("c",)}
        assert found == {r: f"int{w}" for n, w in best.items() if w != 4 for r in readers[n]}
        assert found

    def test_a_reader_of_two_tensors_is_not_overridden_and_keeps_its_bits(self):
        shares, sizes = {"x": 1.0, "y": 1 / 20, "z": 1 / 20}, dict.fromkeys("xyz", 10)
        found = self.mixed({"x": ("a",), "y": ("b", "add"), "z": ("add",)}, shares, sizes)
        assert found == {}  # y can't have fewer than the addition asks for, z has no reader of its own

"""Bits divided among layers: budgets are kept, and the choice is of all choices the best."""

import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from networks import images, sequence
from test_allocate import by_name, net
from test_corrections import residual
from torch import nn

from pytorch_quantizer import InputError, IntQuantizer, Override, Recipe, Site, TensorStatistics, quantize
from pytorch_quantizer.calibration.mix_precisions import mix_precisions
from pytorch_quantizer.calibration.width_errors import output_error
from pytorch_quantizer.quantization.distributions import DISTRIBUTIONS, Laplace


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
        readers = {"x": ("a", "add"), "y": ("b", "add"), "z": ("c",)}
        with pytest.raises(InputError, match=r"must be at least 2\.34 bits"):  # 2 1/3, rounded up
            TestShares().mixed(readers, dict.fromkeys("xyz", 1.0), {"x": 9, "y": 9, "z": 90}, budget=2)

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


def weights_of(model):
    return {site.name: site for site in model.sites if site.kind == "weight"}


def bytes_of(model):
    """Codes and scales of all weights."""
    sites = weights_of(model).values()
    shapes = {site.name: model.get_parameter(site.node).shape for site in sites}
    return sum(site.quantizer.code_bytes(shapes[site.name]) + 4 * site.quantizer.scale.numel() for site in sites)


def bit_operations_of(model, x):
    """Σ MACs·b_w·b_a in billions: counted from the outputs of an image, bits from the quantizers that really run."""
    total = 0.0
    quantized = {}

    class Counting(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            module = self.module.get_submodule(n.target) if n.op == "call_module" else None
            if isinstance(module, nn.Conv2d | nn.Linear):
                nonlocal total
                source = n.all_input_nodes[0]
                while source not in quantized:
                    source = source.all_input_nodes[0]
                macs = value.shape[2:].numel() * module.weight.numel()
                total += macs * module.weight_quantizer.bits * quantized[source] / 1e9
            elif hasattr(module, "bits"):
                quantized[n] = module.bits
            return value

    Counting(model).run(x[:1])
    return total


class TestOtherBudgets:
    RECIPE = Recipe(weights="int4", activations="int4", mixed_precision="both")

    @pytest.mark.parametrize("share", [0.15, 0.17, 0.2])
    @pytest.mark.parametrize("criterion", ["noise", "measured"])
    def test_a_share_of_the_float_size_is_kept_and_spent(self, share, criterion):
        recipe = self.RECIPE.replace(mixed_precision_size=share, mixed_precision_criterion=criterion)
        model = quantize(net(), recipe, [images()])
        whole = sum(4 * layer.weight.numel() for layer in net().body if hasattr(layer, "weight"))
        one_bit = model.get_parameter("body.2.weight").numel() // 8
        assert share * whole - one_bit < bytes_of(model) <= share * whole

    def test_bytes_are_the_same_as_their_share(self):
        whole = sum(4 * layer.weight.numel() for layer in net().body if hasattr(layer, "weight"))
        found = [
            quantize(net(), self.RECIPE.replace(mixed_precision_size=size), [images()]).recipe
            for size in (0.17, 0.17 * whole)
        ]
        assert found[0] == found[1]

    @pytest.mark.parametrize("what", ["weights", "activations", "both"])
    @pytest.mark.parametrize("criterion", ["noise", "measured"])
    def test_bit_operations_are_kept_and_spent(self, what, criterion):
        plain = quantize(net(), self.RECIPE.replace(mixed_precision="none"), [images()])
        limit = 1.1 * bit_operations_of(plain, images())
        recipe = self.RECIPE.replace(mixed_precision=what, mixed_precision_criterion=criterion)
        model = quantize(net(), recipe.replace(mixed_precision_bit_operations=limit), [images()])
        assert 0.8 * limit < bit_operations_of(model, images()) <= limit
        bits = {site.quantizer.bits for site in model.sites if site.quantizer is not None and site.kind != "bias"}
        assert len(bits) > 1

    def test_both_budgets_and_the_mean_bits_at_once(self):
        recipe = self.RECIPE.replace(mixed_precision_size=0.17, mixed_precision_bit_operations=0.03)
        model = quantize(net(), recipe.replace(mixed_precision_budget=3.5), [images()])
        assert bit_operations_of(model, images()) <= 0.03
        middle = [site for site in weights_of(model).values() if site.name in ("body.2.weight", "body.4.weight")]
        sizes = [model.get_parameter(site.node).numel() for site in middle]
        assert sum(n * site.quantizer.bits for n, site in zip(sizes, middle, strict=True)) <= 3.5 * sum(sizes)

    def test_a_size_alone_leaves_activations_their_mean_bits(self):
        recipe = self.RECIPE.replace(mixed_precision_size=0.2)
        sites = by_name(quantize(net(), recipe, [images()]))
        bits = {name: sites[name].quantizer.bits for name in ("body.1", "body.3")}
        assert bits["body.1"] * 16 + bits["body.3"] * 32 <= 4 * 48

    def test_the_recipe_that_was_carried_out_gives_the_same_again(self):
        recipe = self.RECIPE.replace(
            mixed_precision_size=0.17, mixed_precision_bit_operations=0.03, mixed_precision_criterion="measured"
        )
        first = quantize(net(), recipe, [images()])
        assert first.recipe.mixed_precision == "none"
        assert torch.equal(quantize(net(), first.recipe, [images()])(images()), first(images()))

    @pytest.mark.parametrize("name", ["mixed_precision_size", "mixed_precision_bit_operations"])
    def test_too_small_a_budget(self, name):
        with pytest.raises(InputError, match=rf"{name}, in .*, must be at least .* got"):
            quantize(net(), self.RECIPE.replace(**{name: 1e-5}), [images()])

    def test_too_small_a_share_is_told_the_least_that_would_do(self):
        """The user's own number comes back, and the share that is told is enough."""
        with pytest.raises(InputError, match=r"at least (\S+) \(\d+\), .* got 0\.1 \(") as caught:
            quantize(net(), self.RECIPE.replace(mixed_precision_size=0.1), [images()])
        told = float(str(caught.value).split("at least ")[1].split()[0])
        quantize(net(), self.RECIPE.replace(mixed_precision_size=told), [images()])
        with pytest.raises(InputError, match="at least"):
            quantize(net(), self.RECIPE.replace(mixed_precision_size=told - 2e-6), [images()])

    def test_bytes_stay_bytes(self):
        with pytest.raises(InputError, match=r"in bytes of all weights, must be at least \d+, .* got 2$"):
            quantize(net(), self.RECIPE.replace(mixed_precision_size=2), [images()])

    def test_nothing_takes_part(self):
        recipe = Recipe(mixed_precision="weights", mixed_precision_size=0.1)
        with pytest.raises(InputError, match=r"no tensor takes part that was asked for .* got 0\.1 \("):
            quantize(net(), recipe, [images()])
        assert quantize(net(), recipe.replace(mixed_precision_size=0.3), [images()]).recipe.overrides == ()


class TestMeasured:
    RECIPE = Recipe(weights="int4", activations="int4", mixed_precision_criterion="measured", mixed_precision="weights")

    def alone(self, model, name, width, batch):
        """The outputs' error where one weight alone is on its grid, computed without the graph."""
        changed = sequence(*net().body)
        changed.load_state_dict(model.state_dict())
        weight = changed.get_parameter(name)
        with torch.no_grad():
            weight.copy_(IntQuantizer(width, narrow=True, axis=0).fit(weight)(weight))
            return output_error(model(batch), changed(batch))

    def test_is_the_best_of_all_by_what_each_does_to_the_outputs_alone(self):
        model, batch = net(), images(16, 3, 8, 8)
        recipe = self.RECIPE.replace(mixed_precision_budget=4.5)
        found = quantize(model, recipe, [batch])
        names = ("body.2.weight", "body.4.weight")
        sizes = [model.get_parameter(name).numel() for name in names]
        errors = [{width: self.alone(model, name, width, batch) for width in range(2, 9)} for name in names]
        fitting = [
            widths
            for widths in product(range(2, 9), repeat=2)
            if sum(n * w for n, w in zip(sizes, widths, strict=True)) <= 4.5 * sum(sizes)
        ]
        best = min(fitting, key=lambda widths: sum(e[w] for e, w in zip(errors, widths, strict=True)))
        assert tuple(weights_of(found)[name].quantizer.bits for name in names) == best

    def test_a_layer_that_nothing_hears_of_gets_least(self):
        """body.2's loud channels are weighted with zero by the layer behind it: noise to signal can't see that."""
        model = net()
        with torch.no_grad():
            model.body[4].weight[:, 1:] = 0
        bits = {
            criterion: weights_of(quantize(model, self.RECIPE.replace(mixed_precision_criterion=criterion), [images()]))
            for criterion in ("noise", "measured")
        }
        assert bits["measured"]["body.2.weight"].quantizer.bits <= bits["noise"]["body.2.weight"].quantizer.bits

    def test_needs_images(self):
        floating = {"activations": "float32", "first": "float32", "last": "float32", "bias": "float32"}
        with pytest.raises(InputError, match="the recipe measures what widths cost: give calibration="):
            quantize(net(), self.RECIPE.replace(deployable=False, **floating))

    @pytest.mark.parametrize("what", ["weights", "activations", "both"])
    def test_on_shortcuts_and_wide_residuals(self, what):
        recipe = self.RECIPE.replace(mixed_precision=what, wide_residual=True, mixed_precision_budget=3)
        model = quantize(residual(), recipe, [images(6, 3, 8, 8)])
        assert torch.isfinite(model(images())).all()
        assert len({o.weights or o.activations for o in model.recipe.overrides}) > 0

    def test_of_outputs_that_are_no_logits(self):
        expected, found = torch.ones(2, 3, 4), torch.full((2, 3, 4), 1.5)
        assert output_error(expected, found) == pytest.approx(0.25)

    def test_of_logits_it_is_the_divergence(self):
        expected, found = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
        assert output_error(expected, found) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
        assert output_error(expected, expected) == 0

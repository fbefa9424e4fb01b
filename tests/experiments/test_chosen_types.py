"""The widths of the headline are those of the model's tensors, not those that mixed precision was given to divide."""

import pytest
from networks import images, sequence
from torch import nn

from pytorch_quantizer import Override, Recipe, quantize
from pytorch_quantizer.experiments.chosen_types import budgets_of, chosen_types


def quantized(recipe):
    layers = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 24, 3), nn.ReLU(), nn.Conv2d(24, 2, 1), nn.ReLU(), nn.Conv2d(2, 5, 1)]
    return quantize(sequence(*layers), recipe, [images()], progress=False)


@pytest.mark.parametrize(
    ("changes", "weights", "activations"),
    [
        ({}, "int4", "int4"),
        ({"mixed_precision": "weights", "mixed_precision_size": 0.9}, "int8", "int4"),
        ({"mixed_precision": "weights", "mixed_precision_budget": 2}, "int2", "int4"),
        ({"mixed_precision": "both", "mixed_precision_budget": 8}, "int8", "int8"),
        ({"mixed_precision": "activations", "mixed_precision_budget": 8}, "int4", "int8"),
    ],
)
def test_one_width(changes, weights, activations):
    recipe = Recipe(weights="int4", activations="int4").replace(**changes)
    model = quantized(recipe)
    assert chosen_types(model, recipe) == {"weights": weights, "activations": activations}


def test_several_widths_are_told_by_their_ends():
    """First and last layer take no part, and have their 8 bits."""
    recipe = Recipe(weights="int4", mixed_precision="weights", mixed_precision_budget=4.3)
    model = quantized(recipe)
    bits = [site.quantizer.bits for site in model.sites if site.kind == "weight"]
    assert (bits[0], bits[-1], len({*bits[1:-1]})) == (8, 8, 2)
    assert chosen_types(model, recipe)["weights"] == f"int{min(bits[1:-1])} … int{max(bits[1:-1])}, mixed"
    assert chosen_types(model, None) == chosen_types(model, recipe)


def test_what_the_user_overrides_takes_no_part():
    given = (Override("body.1", weights="int6"),)
    recipe = Recipe(weights="int4", mixed_precision="weights", mixed_precision_budget=2, overrides=given)
    assert chosen_types(quantized(recipe), recipe)["weights"] == "int2"


def test_budgets_are_those_that_are_given():
    assert budgets_of(Recipe()) == {}
    recipe = Recipe(weights="int4", mixed_precision="weights", mixed_precision_size=0.2, mixed_precision_budget=3)
    assert budgets_of(recipe) == {"mixed_precision_budget": 3, "mixed_precision_size": 0.2}

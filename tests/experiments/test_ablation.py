"""The ablation's rows as recipes, its columns and settings as text, its table."""

import pytest

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.ablation import (
    ALL,
    ALLOCATION,
    BASELINE,
    CLIPPING,
    CORRECTION,
    PUBLISHED,
    ROWS,
    Bits,
    ablation_markdown,
    ablation_recipes,
    parse_bits,
    parse_settings,
)

LAPLACE, MSE = CLIPPING["laplace"], CLIPPING["mse"]


def differences(recipes, row):
    """The fields in which a row's recipe differs from the baseline's."""
    base, recipe = vars(recipes[BASELINE]), vars(recipes[row])
    return {name: recipe[name] for name in base if recipe[name] != base[name] and name != "name"}


class TestPaper:
    def test_4w4a_adds_one_thing_a_row(self):
        recipes = ablation_recipes("paper", Bits(4, 4))
        assert list(recipes) == [BASELINE, LAPLACE, ALLOCATION, CORRECTION, ALL]
        assert differences(recipes, LAPLACE) == {"clip": "laplace"}
        assert differences(recipes, ALLOCATION) == {"weight_allocation": "bits", "activation_allocation": "bits"}
        assert differences(recipes, CORRECTION) == {"weight_correction": "both"}
        together = differences(recipes, ALL)
        assert together == {
            name: value
            for row in (LAPLACE, ALLOCATION, CORRECTION)
            for name, value in differences(recipes, row).items()
        }

    def test_the_quota_is_bit_allocations_alone(self):
        bits, bins = (ablation_recipes("paper", Bits(4, 4), quota) for quota in ("bits", "bins"))
        assert differences(bins, ALLOCATION) == {"weight_allocation": "bins", "activation_allocation": "bins"}
        assert {row for row in bits if bits[row] != bins[row]} == {ALLOCATION, ALL}

    def test_clipping_is_of_activations_correction_of_weights_allocation_of_what_has_few_bits(self):
        activations, weights = ablation_recipes("paper", Bits(8, 4)), ablation_recipes("paper", Bits(4, 8))
        assert list(activations) == [BASELINE, LAPLACE, ALLOCATION, ALL]
        assert differences(activations, ALL) == {"clip": "laplace", "activation_allocation": "bits"}
        assert list(weights) == [BASELINE, ALLOCATION, CORRECTION, ALL]
        assert differences(weights, ALL) == {"weight_allocation": "bits", "weight_correction": "both"}

    def test_channels_have_ranges_of_their_own(self):
        for recipe in ablation_recipes("paper", Bits(4, 8)).values():
            assert not recipe.deployable
            assert (recipe.activation_granularity, recipe.weight_granularity) == ("per_channel", "per_channel")
            assert (recipe.weights, recipe.activations) == ("int4", "int8")
            assert recipe.weight_clip == "minmax"


class TestDeployable:
    def test_every_row_is_deployable(self):
        for bits in (Bits(8, 4), Bits(4, 8), Bits(4, 4), Bits(3, 3)):
            assert all(recipe.deployable for recipe in ablation_recipes("deployable", bits).values())

    def test_bits_go_to_layers_and_corrections_into_bias_and_scale(self):
        recipes = ablation_recipes("deployable", Bits(4, 4))
        assert list(recipes) == list(ROWS)
        assert differences(recipes, ALLOCATION) == {"mixed_precision": "both"}
        assert differences(recipes, CORRECTION) == {"weight_correction": "both", "activation_correction": "both"}
        assert differences(recipes, ALL)["clip"] == "mse"
        assert differences(ablation_recipes("deployable", Bits(8, 4)), ALL) == {
            "clip": "mse",
            "mixed_precision": "activations",
            "activation_correction": "both",
        }
        assert differences(ablation_recipes("deployable", Bits(4, 8)), ALLOCATION) == {"mixed_precision": "weights"}


@pytest.mark.parametrize("setting", ["paper", "deployable"])
def test_eight_bits_are_the_baseline_alone(setting):
    assert list(ablation_recipes(setting, Bits(8, 8))) == [BASELINE]


class TestText:
    def test_bits(self):
        assert parse_bits("w8a4, 4W8A,w4a4,8w4a") == (Bits(8, 4), Bits(4, 8), Bits(4, 4))
        assert str(Bits(8, 4)) == "8W4A"

    @pytest.mark.parametrize("text", ["", "w4", "w9a4", "w1a4", "w4a4,", "a4w4", "w4a44"])
    def test_other_bits(self, text):
        with pytest.raises(InputError, match="--bits"):
            parse_bits(text)

    def test_settings(self):
        assert parse_settings("deployable,paper,paper") == ("deployable", "paper")
        with pytest.raises(InputError, match="did you mean 'deployable'"):
            parse_settings("paper,deploy")


def cell(setting, column, row, top1):
    return {"setting": setting, "column": column, "row": row, "deployable": setting != "paper", "top1": top1}


def record(arch):
    cells = [
        cell("paper", "8W4A", BASELINE, 0.1),
        cell("paper", "8W4A", LAPLACE, 0.2),
        cell("paper", "4W4A", BASELINE, 0.3),
        cell("paper", "4W4A", ALL, 0.4),
        cell("deployable", "4W4A", MSE, 0.5),
    ]
    return {
        "dataset": "imagenet",
        "seed": 0,
        "settings": ["paper", "deployable"],
        "quota": "bins",
        "calibration": {"split": "train", "samples": 32},
        "networks": [{"arch": arch, "fp32": {"top1": 0.9, "samples": 650}, "cells": cells}],
    }


class TestTable:
    def test_rows_and_columns(self):
        lines = ablation_markdown(record("net")).splitlines()
        assert "## net: float32 90.00 % of 650 images" in lines
        assert "|  | deployable | 8W4A | 4W4A |" in lines
        assert f"| {BASELINE} | no | 10.00 % | 30.00 % |" in lines
        assert f"| {LAPLACE} | no | 20.00 % | – |" in lines
        assert f"| {ALL} | no | – | 40.00 % |" in lines
        assert f"| {MSE} | yes | 50.00 % |" in lines
        assert "published" not in ablation_markdown(record("net"))
        assert any("quota bins, equation 11" in line for line in lines)

    def test_published_figures_stand_beside(self):
        lines = ablation_markdown(record("resnet50")).splitlines()
        assert "|  | deployable | 8W4A | 8W4A published | 4W4A | 4W4A published |" in lines
        assert f"| {BASELINE} | no | 10.00 % | ? | 30.00 % | 62.15 % |" in lines
        assert f"| {ALL} | no | – | ? | 40.00 % | 73.33 % |" in lines
        assert "|  | deployable | 4W4A |" in lines  # the paper has no deployable setting
        assert any("cnn-quantization" in line and "not verified" in line for line in lines)

    def test_what_else_is_published_is_said_of_its_network_alone(self):
        lines = ablation_markdown(record("resnet50")).splitlines()
        [line] = [line for line in lines if line.startswith("Also published, in the authors' code")]
        assert "74.20 %" in line
        assert "vgg16" not in line
        for arch in ("resnet18", "net"):
            assert "Also published" not in ablation_markdown(record(arch))
        only_deployable = record("resnet50") | {"settings": ["deployable"]}
        assert "ublished" not in ablation_markdown(only_deployable)

    def test_every_published_figure_names_a_row_a_column_and_its_source(self):
        for (_, column, row), figure in PUBLISHED.items():
            assert row in ablation_recipes("paper", parse_bits(column)[0])
            assert 0 < figure.top1 < 1
            assert "github.com" in figure.source

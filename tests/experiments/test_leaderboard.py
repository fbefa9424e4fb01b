"""The leaderboard's recipes, and what it reads of flags."""

import pytest
import torch

from pytorch_quantizer import InputError, Recipe, quantize
from pytorch_quantizer.experiments.leaderboard import (
    DEFAULT_SETTINGS,
    METHODS,
    Setting,
    parse_methods,
    parse_residuals,
    parse_seeds,
    parse_settings,
    policy,
    recipe_of,
)
from pytorch_quantizer.models import create_model
from pytorch_quantizer.quantization.recipe import list_recipes


class TestRecipes:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("setting", parse_settings(DEFAULT_SETTINGS), ids=str)
    def test_every_method_at_every_width_is_a_recipe(self, method, setting):
        recipe = recipe_of(method, setting, "narrow", 3)
        assert (recipe.weights, recipe.activations) == (f"int{setting.weights}", f"int{setting.activations}")
        assert recipe.seed == 3
        assert {name: getattr(recipe, name) for name in METHODS[method]} == METHODS[method]

    def test_weights_of_few_bits_get_all_their_levels(self):
        symmetric = {bits: recipe_of("mse", Setting(bits, 4), "narrow", 0).weight_symmetric for bits in (2, 3, 4, 8)}
        assert symmetric == {2: False, 3: False, 4: True, 8: True}
        grids = {bits: policy(recipe_of("mse", Setting(bits, 4), "narrow", 0))["weight_grid"] for bits in (3, 4)}
        assert grids == {3: "affine", 4: "symmetric"}

    @pytest.mark.parametrize(
        ("name", "method", "setting", "residual"),
        [
            ("w4a8_brecq", "brecq + tuning", Setting(4, 8), "narrow"),
            ("w4a4_qdrop", "long qdrop + tuning", Setting(4, 4), "narrow"),
            ("w3a3_qdrop", "long qdrop + tuning", Setting(3, 3), "narrow"),
            ("w2a4_qdrop", "qdrop + tuning", Setting(2, 4), "narrow"),
            ("w2a2_qdrop", "long qdrop + tuning", Setting(2, 2), "narrow"),
            ("w2a2_qdrop_wide", "long qdrop + tuning", Setting(2, 2), "wide"),
            ("w2a2_second_order", "second order + tuned weights", Setting(2, 2), "wide"),
        ],
    )
    def test_shipped_recipes_are_the_rows_that_readme_says(self, name, method, setting, residual):
        assert Recipe.load(name).replace(name="") == recipe_of(method, setting, residual, 0).replace(name="")

    @pytest.mark.parametrize("name", [name for name in list_recipes() if "gptq" in name or "second_order" in name])
    def test_shipped_recipes_call_a_rounding_as_the_rows_do(self, name):
        assert Recipe.load(name).weight_rounding == name.split("_", 1)[1]

    def test_second_order_rounding_is_shipped(self):
        assert {f"{widths}_second_order" for widths in ("w4a4", "w3a3", "w2a4", "w2a2")} <= set(list_recipes())

    def test_methods_differ(self):
        made = [recipe_of(method, Setting(4, 4), "narrow", 0).replace(name="") for method in METHODS]
        assert all(made.count(recipe) == 1 for recipe in made)

    def test_the_residual_policy(self):
        assert [recipe_of("mse", Setting(4, 4), name, 0).wide_residual for name in ("narrow", "wide")] == [False, True]

    def test_what_a_row_says_of_its_policy(self):
        recipe = recipe_of("aciq paper", Setting(4, 4), "narrow", 0)
        assert policy(recipe) == {
            "first_last": "int8",
            "granularity": "weights per-channel, activations per-channel",
            "weight_grid": "symmetric",
            "deployable": False,
        }
        assert policy(recipe.replace(first="int4"))["first_last"] == "int4/int8"

    @pytest.mark.parametrize(
        ("setting", "said", "weights", "activations"),
        [
            (Setting(4, 4), "int8", "int8", "int8"),
            (Setting(16, 16), "int16", "int16", "int16"),
            (Setting(9, 4), "weights int9, activations int8", "int9", "int8"),
            (Setting(4, 12), "weights int8, activations int12", "int8", "int12"),
        ],
    )
    def test_first_and_last_layer_are_said_as_they_are(self, setting, said, weights, activations):
        recipe = recipe_of("minmax", setting, "narrow", 0)
        assert policy(recipe)["first_last"] == said
        assert policy(recipe.replace(last="int4"))["first_last"] == f"{said}/int4"
        model = quantize(create_model("resnet20"), recipe, torch.randn(2, 3, 8, 8), progress=False)
        lines = [line.split() for line in model.summary().splitlines()[2:]]
        types = {line[0]: line[2].removeprefix("u") for line in lines if len(line) > 2}
        assert [types[name] for name in ("conv1.weight", "linear.weight")] == [weights] * 2
        assert [types[name] for name in ("x", "pool")] == [activations] * 2


class TestFlags:
    def test_settings(self):
        assert parse_settings("W4A8, w2a4,W4A8") == [Setting(4, 8), Setting(2, 4)]
        assert [str(setting) for setting in parse_settings("w10a16")] == ["W10A16"]

    @pytest.mark.parametrize("text", ["", "4W4A", "W4", "W1A4", "W4A17", "W4A4,,W2A2"])
    def test_settings_that_are_none(self, text):
        with pytest.raises(InputError, match="--settings must be"):
            parse_settings(text)

    def test_methods(self):
        assert parse_methods(None) == list(METHODS)
        assert parse_methods("mse, gptq") == ["mse", "gptq"]
        with pytest.raises(InputError, match=r"--methods must be among .* got 'gtpq' \(did you mean 'gptq'\?\)"):
            parse_methods("mse,gtpq")

    def test_seeds_and_residuals(self):
        assert parse_seeds("0, 2") == [0, 2]
        assert parse_residuals("narrow,wide") == ["narrow", "wide"]
        for text in ("-1", "one", "1.5"):
            with pytest.raises(InputError, match="--seeds must be whole numbers"):
                parse_seeds(text)
        with pytest.raises(InputError, match="--residual must be among narrow, wide"):
            parse_residuals("broad")

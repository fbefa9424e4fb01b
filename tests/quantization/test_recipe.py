"""Recipes: equal to their YAML, checked when they are made, wrong in one clear line."""

import json

import pytest
import yaml

from pytorch_quantizer import InputError, Override, Recipe
from pytorch_quantizer.quantization.recipe import list_recipes

ODD = Recipe(
    name="odd",
    weights="int3",
    activations="int16",
    residual="int5",
    first="int6",
    last="float32",
    wide_residual=True,
    clip="gaussian",
    weight_clip="laplace",
    statistics="online",
    across_batches="mean",
    weight_granularity="per_tensor",
    activation_granularity="per_channel",
    weight_allocation="none",
    activation_allocation="none",
    allocation_prior="gaussian",
    mixed_precision="weights",
    mixed_precision_budget=3.5,
    mixed_precision_criterion="measured",
    mixed_precision_size=0.125,
    mixed_precision_bit_operations=0.5,
    equalize=True,
    weight_rounding="gptq",
    rounding_damping=0.02,
    rounding_order="size",
    weight_correction="mean",
    activation_correction="mean",
    correction_source="analytic",
    correction_images=7,
    batch_norm_reestimation=True,
    reconstruction="layer",
    reconstruction_learns="activations",
    reconstruction_drop=0.25,
    reconstruction_iterations=7,
    reconstruction_batch=5,
    reconstruction_images=9,
    reconstruction_blocks="layer1.*, fc",
    tuning_epochs=2,
    tuning_rate=0.02,
    tuning_weight_rate=0.003,
    tuning_batch=11,
    tuning_images=13,
    tuning_blocks=0.5,
    tuning_mirror=True,
    seed=3,
    weight_symmetric=False,
    weight_narrow=False,
    activation_symmetric=True,
    bias="float32",
    rounding="half_away",
    deployable=False,
    overrides=(Override("layer1.*", weights="int8", clip="minmax"), Override("fc", activations="float32")),
)


OTHERS = (
    "kmeans1 … kmeans8, pot2 … pot8, apot2 … apot8, ternary, binary, fp8_e4m3, fp8_e5m2, mxfp8_e4m3, mxfp8_e5m2, "
    "mxfp6_e3m2, mxfp6_e2m3, mxfp4, mxint8"
)
ALLOCATED = Recipe(
    name="allocated",
    activation_granularity="per_channel",
    weight_allocation="bins",
    activation_allocation="bits",
    weight_correction="both",
    weight_correction_form="paper",
    deployable=False,
)
DYNAMIC = Recipe(name="dynamic", statistics="dynamic", dynamic_layers="convolution, recurrent", bias="float32")


class TestDivisionOfBits:
    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"weights": "kmeans4", "weight_allocation": "bits"}, "weight_allocation .* and weights are kmeans4"),
            ({"weights": "apot4", "mixed_precision": "weights"}, "mixed_precision .* and weights are apot4"),
            ({"weights": "apot4", "mixed_precision": "both"}, "mixed_precision .* and weights are apot4"),
            ({"activations": "pot4", "mixed_precision": "both"}, "mixed_precision .* and activations are pot4"),
            (
                {"activations": "mxfp4", "activation_granularity": "per_channel", "activation_allocation": "bins"},
                "activation_allocation .* and activations are mxfp4",
            ),
        ],
    )
    def test_is_among_uniform_grids(self, fields, said):
        with pytest.raises(InputError, match=said):
            Recipe(**fields, deployable=False)

    def test_leaves_the_others_alone(self):
        Recipe(weights="kmeans4", activations="int4", mixed_precision="activations", deployable=False)


class TestMixedPrecisionBudget:
    @pytest.mark.parametrize("budget", [1.9, 8.1, float("nan"), True, "3"])
    def test_out_of_its_rule(self, budget):
        with pytest.raises(InputError, match="must be from 2 to 8 bits a value, or left out, got"):
            Recipe(mixed_precision="weights", mixed_precision_budget=budget)

    def test_nothing_to_spend_it_on(self):
        with pytest.raises(InputError, match="mixed_precision_budget needs mixed_precision: weights, activations or"):
            Recipe(mixed_precision_budget=4)

    @pytest.mark.parametrize("name", ["mixed_precision_size", "mixed_precision_bit_operations"])
    @pytest.mark.parametrize("given", [0, -1, float("nan"), float("inf"), True, "3"])
    def test_other_budgets_out_of_their_rule(self, name, given):
        with pytest.raises(InputError, match=f"{name} must be a positive number, or left out, got"):
            Recipe(mixed_precision="weights", **{name: given})

    @pytest.mark.parametrize(
        "fields",
        [
            {"mixed_precision_size": 0.1},
            {"mixed_precision_bit_operations": 1},
            {"mixed_precision_criterion": "measured"},
        ],
    )
    def test_nothing_to_divide(self, fields):
        with pytest.raises(InputError, match=f"{next(iter(fields))} needs mixed_precision: weights, activations or"):
            Recipe(**fields)

    def test_a_size_is_that_of_weights(self):
        with pytest.raises(InputError, match="mixed_precision_size limits weights"):
            Recipe(mixed_precision="activations", mixed_precision_size=0.1)


class TestRangesByOutputs:
    @pytest.mark.parametrize("quota", ["bits", "bins", "midtread"])
    @pytest.mark.parametrize(
        "fields", [{"weight_clip": "output_mse"}, {"overrides": [Override("a", weight_clip="output_mse")]}]
    )
    def test_go_with_channels_of_the_same_bits_alone(self, quota, fields):
        said = f"output_mse is for channels of the same bits, which weight_allocation {quota} divides"
        with pytest.raises(InputError, match=said):
            Recipe(weight_allocation=quota, deployable=False, **fields)


class TestYaml:
    @pytest.mark.parametrize(
        "recipe", [Recipe(), ODD, ALLOCATED, DYNAMIC, *map(Recipe.load, list_recipes())], ids=lambda recipe: recipe.name
    )
    def test_round_trip(self, recipe, tmp_path):
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
        recipe.save(tmp_path / "recipe.yaml")
        assert Recipe.load(tmp_path / "recipe.yaml") == recipe
        assert Recipe.load(str(tmp_path / "recipe.yaml")) == recipe

    def test_no_field_is_at_its_default_in_the_odd_one(self):
        bound = {"weight_allocation", "activation_allocation", "weight_correction_form", "dynamic_layers"}  # by others
        same = {k for k, v in vars(ODD).items() if v == vars(Recipe())[k]}
        assert same == bound, "the round trip must exercise each field"

    def test_holds_every_field_and_nothing_but_plain_values(self):
        values = yaml.safe_load(ODD.to_yaml())
        assert list(values) == list(vars(ODD))
        assert values["overrides"][0] == {"layers": "layer1.*", "weights": "int8", "clip": "minmax"}

    def test_absent_fields_keep_their_defaults(self):
        assert Recipe.from_yaml("weights: int4") == Recipe(weights="int4")
        assert Recipe.from_yaml("") == Recipe()

    def test_numbers_need_no_dot_before_their_exponent(self):
        assert Recipe.from_yaml("tuning_rate: 5e-3").tuning_rate == 5e-3
        assert Recipe.from_yaml("{tuning_rate: 5E-3, rounding_damping: 1.5e-2}").rounding_damping == 0.015

    @pytest.mark.parametrize("name", ["1e5", "4E2", "1.5e3", "0x1f", "true", "5"])
    def test_a_name_that_looks_like_a_number_stays_text(self, name):
        recipe = Recipe(name=name, overrides=[{"layers": name, "weights": "int4"}])
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe

    def test_json_indented_by_tabs(self, tmp_path):
        (tmp_path / "recipe.json").write_text('{\n\t"weights": "int4",\n\t"tuning_rate": 5e-3\n}\n')
        assert Recipe.load(tmp_path / "recipe.json") == Recipe(weights="int4", tuning_rate=5e-3)

    def test_keys_that_begin_with_an_underscore_are_comments(self, tmp_path):
        written = {"_comment": "why", "weights": "int4", "overrides": [{"layers": "a", "_comment_a": 1, "clip": "mse"}]}
        (tmp_path / "recipe.json").write_text(json.dumps(written))
        expected = Recipe(weights="int4", overrides=(Override("a", clip="mse"),))
        assert Recipe.load(tmp_path / "recipe.json") == expected
        assert Recipe.from_yaml(yaml.safe_dump(written)) == expected
        assert Recipe.from_yaml("_comment: nothing else") == Recipe()

    def test_a_json_file_that_is_not_there_is_no_name(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot read the recipe .*absent\.json: No such file"):
            Recipe.load(tmp_path / "absent.json")

    def test_without_a_suffix(self, tmp_path):
        (tmp_path / "mine").write_text("name: mine\n")
        assert Recipe.load(tmp_path / "mine").name == "mine"


class TestShipped:
    def test_are_there(self):
        assert {"w8a8", "w8a8_aciq", "w8a4", "w8a4_aciq"} <= set(list_recipes())

    @pytest.mark.parametrize("name", list_recipes())
    def test_load_under_their_own_name_and_run_in_integers_but_for_the_papers(self, name):
        recipe = Recipe.load(name)
        assert recipe.name == name
        assert recipe.deployable != name.endswith("_paper")

    def test_say_what_their_name_says(self):
        recipe = Recipe.load("w8a4_aciq")
        assert (recipe.weights, recipe.activations, recipe.clip, recipe.bias) == ("int8", "int4", "laplace", "int32")


class TestFields:
    def test_replace(self):
        assert Recipe().replace(weights="int4").weights == "int4"
        with pytest.raises(InputError, match=r"unknown recipe field 'weight'.*did you mean 'weights'"):
            Recipe().replace(weight="int4")
        with pytest.raises(InputError, match="clip must be one of"):
            Recipe().replace(clip="none")

    def test_overrides_may_be_written_as_mappings(self):
        assert Recipe(overrides=[{"layers": "a", "weights": "int2"}]).overrides == (Override("a", weights="int2"),)

    def test_matching_overrides_in_order(self):
        overrides = (Override("layer1.*"), Override("*.conv2"), Override("fc"))
        recipe = Recipe(overrides=overrides)
        assert recipe.matching("layer1.0.conv2") == [*overrides[:2]]
        assert recipe.matching("fc") == [overrides[2]]
        assert recipe.matching("FC") == recipe.matching("fc1") == []

    def test_frozen(self):
        with pytest.raises(AttributeError):
            Recipe().weights = "int4"

    @pytest.mark.parametrize(
        ("field", "value"), [("bias", "float32"), ("rounding", "half_away"), ("rounding", "stochastic")]
    )
    def test_deployable_admits_only_what_integer_kernels_run(self, field, value):
        with pytest.raises(InputError, match=rf"{field}='{value}' can't run in integer kernels; set deployable: false"):
            Recipe(**{field: value})
        assert getattr(Recipe(deployable=False, **{field: value}), field) == value


class TestDynamic:
    """Ranges of each batch, of what layers read: what it asks of other fields, and what integer kernels then run."""

    def test_layers_stand_in_one_order(self):
        assert DYNAMIC.dynamic_layers == "recurrent, convolution"
        assert DYNAMIC.replace(dynamic_layers="recurrent,convolution ,  recurrent") == DYNAMIC

    @pytest.mark.parametrize("names", ["", "lstm", "linear; recurrent", "linear,", ["linear"], None])
    def test_layers_are_of_the_list(self, names):
        with pytest.raises(InputError, match="dynamic_layers must be some of linear, recurrent, convolution"):
            DYNAMIC.replace(dynamic_layers=names)

    def test_layers_ask_for_it(self):
        with pytest.raises(InputError, match="dynamic_layers says what statistics dynamic quantizes: set statistics"):
            Recipe(dynamic_layers="linear")

    @pytest.mark.parametrize(
        ("field", "value", "said"),
        [
            ("bias", "int32", "no grid of a layer's sums is fixed: set bias float32"),
            ("residual", "int8", "additions stay in float: leave out residual and wide_residual"),
            ("wide_residual", True, "additions stay in float"),
            ("mixed_precision", "both", "needs to know the tensors: set statistics offline"),
        ],
    )
    def test_contradictions(self, field, value, said):
        with pytest.raises(InputError, match=said):
            DYNAMIC.replace(**{field: value}, deployable=False)

    @pytest.mark.parametrize(
        "fields",
        [
            {"clip": "laplace"},
            {"activation_symmetric": True},
            {"activation_granularity": "per_channel"},
            {"rounding": "half_away"},
            {"activations": "int4"},
            {"activations": "int16"},
            {"first": "int16"},
            {"weights": "int16"},
            {"weights": "float32"},
            {"overrides": (Override("fc", activations="int4"),)},
            {"overrides": (Override("fc", weights="int9"),)},
            {"overrides": (Override("fc", clip="mse"),)},
        ],
        ids=str,
    )
    def test_what_only_a_simulation_runs(self, fields):
        with pytest.raises(InputError, match="set deployable: false"):
            DYNAMIC.replace(**fields)
        assert not DYNAMIC.replace(**fields, deployable=False).deployable

    def test_what_integer_kernels_run(self):
        fields = {"weights": "int4", "weight_granularity": "per_tensor", "weight_symmetric": False, "first": "int8"}
        assert DYNAMIC.replace(**fields, overrides=(Override("fc", weights="int3", clip="minmax"),)).deployable


class TestRefusals:
    """One line, with the field, the rule and the value; from a file, with the file."""

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("weights", "int0", "bits must be between 1 and 16, got 0"),
            ("weights", "uint8", f"a number type must be one of int1 … int16, {OTHERS} or float32, got 'uint8'"),
            ("weights", 4, f"a number type must be one of int1 … int16, {OTHERS} or float32, got 4"),
            ("weights", None, f"a number type must be one of int1 … int16, {OTHERS} or float32, got None"),
            ("activations", None, f"a number type must be one of int1 … int16, {OTHERS} or float32, got None"),
            ("residual", "int17", "bits must be between 1 and 16, got 17"),
            ("first", "eight", "a number type must be"),
            ("last", "eight", "a number type must be"),
            ("clip", "laplas", "got 'laplas' (did you mean 'laplace'?)"),
            ("weight_clip", 7, "clip must be one of minmax, "),
            (
                "weight_granularity",
                "channel",
                "weight_granularity must be one of per_tensor, per_channel, got 'channel'",
            ),
            ("bias", "int16", "bias must be one of int32, float32, got 'int16'"),
            ("rounding", "even", "rounding must be one of half_even, half_away, stochastic, got 'even'"),
            ("deployable", "false", "deployable must be true or false, got 'false'"),
            ("weight_symmetric", 1, "weight_symmetric must be true or false, got 1"),
            ("wide_residual", None, "wide_residual must be true or false, got None"),
            ("name", 5, "name must be text, got 5"),
            ("overrides", 3, "overrides must be a list"),
            ("overrides", None, "overrides must be a list"),
            ("overrides", {"layers": "a"}, "overrides must be a list"),
            ("overrides", ["conv1"], "an override needs 'layers'"),
            ("overrides", [{"weights": "int4"}], "an override needs 'layers'"),
            ("overrides", [{"layers": "a", "bits": 4}], "an override needs 'layers' and may hold weights, activations"),
            ("overrides", [{"layers": 3}], "an override's layers must be a pattern, got 3"),
            ("overrides", [{"layers": "a", "weights": "int99"}], "bits must be between 1 and 16, got 99"),
            ("overrides", [{"layers": "a", "clip": "no"}], "clip must be one of"),
        ],
    )
    def test_values(self, field, value, message, tmp_path):
        with pytest.raises(InputError) as direct:
            Recipe(**{field: value})
        assert message in str(direct.value)
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump({field: value}))
        with pytest.raises(InputError) as from_file:
            Recipe.load(tmp_path / "bad.yaml")
        assert message in str(from_file.value)
        assert "bad.yaml" in str(from_file.value)
        assert "\n" not in str(from_file.value)

    def test_unknown_field(self):
        with pytest.raises(
            InputError, match=r"mine\.yaml: unknown recipe field 'activation' .*did you mean 'activations'"
        ):
            Recipe.from_yaml("activation: int4", source="mine.yaml")
        with pytest.raises(InputError, match=r"unknown recipe field 'zzz'; known: name, weights"):
            Recipe.from_yaml("zzz: int4")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("- a\n- b", "must hold a mapping of recipe fields, got list"),
            ("a: [1", "is not YAML"),
            ("7", "got int"),
            ("seed: 2024-13-01", "is not YAML or JSON: month must be in 1..12"),
        ],
    )
    def test_not_a_recipe(self, text, message):
        with pytest.raises(InputError, match=message):
            Recipe.from_yaml(text)

    @pytest.mark.parametrize("given", [{"clip": "mse"}, None, 3])
    def test_what_is_no_name(self, given):
        said = rf"a recipe is a Recipe, the name of a shipped one or a file, got {type(given).__name__}: Recipe\("
        with pytest.raises(InputError, match=said):
            Recipe.load(given)

    def test_a_field_given_twice(self):
        with pytest.raises(
            InputError, match=r"recipe is not YAML or JSON: the key clip stands twice \(line 2\): leave"
        ):
            Recipe.from_yaml("clip: mse\nclip: laplace")

    def test_files(self, tmp_path):
        with pytest.raises(InputError, match=r"cannot read the recipe .*absent\.yaml: No such file"):
            Recipe.load(tmp_path / "absent.yaml")
        said = (
            r"no recipe named 'w8a5' \(did you mean 'w8a8'\?\); shipped are .*w8a4_aciq.*or give a file, YAML or JSON"
        )
        with pytest.raises(InputError, match=said):
            Recipe.load("w8a5")
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
        with pytest.raises(InputError, match=r"cannot read the recipe .*binary\.yaml"):
            Recipe.load(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    "fields",
    [
        {"weights": "float32"},
        {"activations": "float32"},
        {"first": "float32"},
        {"overrides": (Override("fc", activations="float32"),)},
    ],
)
def test_float32_tensors_are_not_deployable(fields):
    with pytest.raises(InputError, match="deployable: false"):
        Recipe(**fields)
    assert not Recipe(**fields, deployable=False).deployable

"""A sweep's file: what it means, and one line for whatever is wrong in it."""

from pathlib import Path

import pytest
import yaml

from pytorch_quantizer import InputError, Recipe
from pytorch_quantizer.quantization.idle_fields import idle_fields
from pytorch_quantizer.sweeps.plan import parse_plan, read_plan

SHIPPED = sorted((Path(__file__).parents[2] / "scripts" / "configs").glob("sweep_*.yaml"))


def points(text, **overrides):
    return parse_plan(yaml.safe_load(text), overrides)[1]


@pytest.fixture
def images(tmp_path):
    """A folder that holds weights beside what counts as a data set's images."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in ("resnet20.th", "mine.pth"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


class TestGrid:
    def test_is_every_combination_in_order(self):
        made = points("{recipes: [w8a8, w8a4], seeds: [3, 4], datasets: [digits], models: [resnet20]}")
        assert [(point.recipe.name, point.config.seed, point.recipe.seed) for point in made] == [
            ("w8a8", 3, 3),
            ("w8a8", 4, 4),
            ("w8a4", 3, 3),
            ("w8a4", 4, 4),
        ]
        assert made[0].recipe == Recipe.load("w8a8").replace(seed=3)

    def test_needs_only_recipes(self):
        [point] = points("{recipes: [w8a8]}")
        assert (point.config.dataset, point.config.arch, point.config.seed) == ("digits", "resnet20", 0)

    def test_of_fields(self):
        made = points("recipes: [{recipe: w8a8, equalize: true, grid: {weights: [int4, int3], clip: [mse, laplace]}}]")
        assert [(point.recipe.weights, point.recipe.clip) for point in made] == [
            ("int4", "mse"),
            ("int4", "laplace"),
            ("int3", "mse"),
            ("int3", "laplace"),
        ]
        assert {point.recipe.equalize for point in made} == {True}
        assert made[0].recipe.name == "w8a8 equalize=true weights=int4 clip=mse"
        assert len({point.recipe.name for point in made}) == 4

    def test_of_fields_under_a_name(self):
        made = points("recipes: [{name: mine, clip: mse}, {name: grid, grid: {overrides: [[], [{layers: '*'}]]}}]")
        assert made[0].recipe.name == "mine"
        assert len(made[2].recipe.overrides) == 1

    def test_what_a_field_switches_off_leaves_no_settings_behind(self):
        made = points("recipes: [{recipe: w2a4_qdrop, tuning_epochs: 0, grid: {reconstruction: [block, none]}}]")
        assert [idle_fields(point.recipe) for point in made] == [{}, {}]

    def test_of_a_file(self, tmp_path):
        Recipe(clip="mse").save(tmp_path / "own.yaml")
        [point] = points(f"recipes: [{tmp_path / 'own.yaml'}]")
        assert (point.recipe.name, point.recipe.clip) == ("own", "mse")

    def test_weights_are_taken_where_they_are_named_or_lie_beside_the_images(self, images):
        made = points(
            f"""
            datasets: [{{dataset: cifar10, data: {images}}}, digits]
            models: [resnet20, {{arch: resnet32, checkpoint: {images}/mine.pth, datasets: cifar10}}]
            recipes: [w8a8]
            """
        )
        assert [(point.config.dataset, point.config.arch, point.config.checkpoint) for point in made] == [
            ("cifar10", "resnet20", images / "resnet20.th"),
            ("cifar10", "resnet32", images / "mine.pth"),
            ("digits", "resnet20", None),
        ]

    def test_the_data_flag_is_for_data_sets_that_name_no_folder(self, images, tmp_path):
        made = points("{datasets: [digits, cifar10], recipes: [w8a8]}", data=images)
        assert [point.config.data for point in made] == [None, images]

    def test_paths_may_hold_variables(self, images, monkeypatch):
        monkeypatch.setenv("IMAGES", str(images))
        [point] = points("{datasets: [{dataset: cifar10, data: $IMAGES}], recipes: [w8a8]}")
        assert point.config.data == images


def test_settings_are_every_points_and_flags_win():
    [point] = points("{settings: {limit: 7, batch_size: 3}, recipes: [w8a8]}", limit=9)
    assert (point.config.limit, point.config.batch_size, point.config.calibration_samples) == (9, 3, 1024)


def test_a_list_of_points():
    first, second = points("points: [{recipe: w8a8, seed: 2}, {recipe: {clip: mse}, arch: resnet20, dataset: digits}]")
    assert (first.recipe.name, first.config.seed) == ("w8a8", 2)
    assert second.recipe.clip == "mse"


def test_a_recipe_may_come_again():
    assert len(points("points: [{recipe: w8a8, seed: 1}, {recipe: w8a8, seed: 2}, {recipe: w8a8, seed: 1}]")) == 3


def test_comments(tmp_path):
    (tmp_path / "sweep.yaml").write_text("_comment: all\nrecipes: [{_why: 1, recipe: w8a8}]\nsettings: {_limit: 3}\n")
    assert len(read_plan(tmp_path / "sweep.yaml")[1]) == 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_those_that_are_shipped_repeat_nothing(path, images):
    overrides = {} if "digits" in path.name else {"data": images}
    made = read_plan(path, overrides)[1]
    assert len({(point.config, point.recipe.replace(name="")) for point in made}) == len(made)
    assert len(made) == (24 if "cifar10" in path.name else 14)


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[1]", "a sweep must be a mapping"),
            ("{recipe: [w8a8]}", "unknown key 'recipe': did you mean 'recipes'?"),
            ("{}", "needs either recipes"),
            ("{recipes: [w8a8], points: [{recipe: w8a8}]}", "needs either recipes"),
            ("{points: [{recipe: w8a8}], seeds: [1]}", "leave seeds out"),
            ("{points: [{seed: 1}]}", r"points\[0\] needs recipe"),
            ("{points: [{recipe: w8a8, sed: 1}]}", r"points\[0\] has an unknown key 'sed': did you mean 'seed'"),
            ("{recipes: w8a8}", "recipes must be a list"),
            ("{recipes: []}", "recipes must be a list with at least one entry"),
            ("{recipes: [w8a9]}", r"recipes\[0\]: no recipe named 'w8a9'.*did you mean"),
            ("{recipes: [3]}", r"recipes\[0\]: must be a recipe's name"),
            ("{recipes: [{clib: mse}]}", r"recipes\[0\]: .*unknown recipe field 'clib'.*did you mean 'clip'"),
            ("{recipes: [{clip: mze}]}", r"recipes\[0\]: .*clip"),
            ("{recipes: [{grid: {clip: mse}}]}", "grid.clip must be a list"),
            ("{recipes: [{grid: [clip]}]}", "grid must be a mapping"),
            ("{recipes: [{clip: mse, grid: {clip: [mse]}}]}", "clip has one value beside the grid"),
            ("{recipes: [{seed: 1}]}", "give seeds"),
            ("{recipes: [{grid: {weight_clip: [minmax, mze]}}]}", "weight_clip=mze"),
            ("{recipes: [w8a8], seeds: [a]}", "seeds must be whole numbers"),
            ("{recipes: [w8a8], seeds: [-1]}", "seeds must be whole numbers"),
            ("{recipes: [w8a8], seeds: [true]}", "seeds must be whole numbers"),
            ("{recipes: [w8a8], settings: {limit: 0}}", "settings: limit must be a whole number"),
            ("{recipes: [w8a8], settings: {limits: 5}}", "settings has an unknown key 'limits': did you mean 'limit'"),
            ("{recipes: [w8a8], settings: {strict: 'no'}}", "strict must be true or false"),
            ("{recipes: [{name: a, clip: mse}, {name: a, clip: kl}]}", "two different recipes are called 'a'"),
            (
                "{points: [{recipe: {name: w8a8, weights: int4}}, {recipe: w8a8, seed: 1}]}",
                "two different recipes are called 'w8a8'",
            ),
            ("{recipes: [w8a8], models: [resnet21]}", r"models\[0\] on datasets\[0\]: unknown arch 'resnet21'"),
            ("{points: [{recipe: w8a8}, {recipe: w8a8, arch: resnet21}]}", r"points\[1\]: unknown arch 'resnet21'"),
            ("{recipes: [w8a8], models: [resnet32]}", "no weights for resnet32 on digits"),
            ("{recipes: [w8a8], models: [{arch: resnet20, checkpoint: /nowhere}]}", "none at /nowhere"),
            ("{recipes: [w8a8], models: [{arch: resnet20, datasets: mnist}]}", "no model is for any of the datasets"),
            ("{recipes: [w8a8], models: [{arch: 20}]}", r"models\[0\].arch must be a name"),
            ("{recipes: [w8a8], datasets: [digit]}", "unknown data set 'digit'"),
            ("{recipes: [w8a8], datasets: [{dataset: cifar10, data: /nowhere}]}", "none at /nowhere"),
            ("{recipes: [w8a8], datasets: [{data: $NOT_SET_AT_ALL}]}", "names a variable that isn't set"),
        ],
    )
    def test_are_one_line_with_the_place(self, tmp_path, text, said):
        (tmp_path / "sweep.yaml").write_text(text)
        with pytest.raises(InputError, match=said) as raised:
            read_plan(tmp_path / "sweep.yaml")
        assert str(raised.value).startswith(f"{tmp_path / 'sweep.yaml'}: ")
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("content", "said"), [(b"{", "neither YAML nor JSON"), (b"\xff\xfe", "not UTF-8"), (None, "No such file")]
    )
    def test_files(self, tmp_path, content, said):
        if content is not None:
            (tmp_path / "sweep.yaml").write_bytes(content)
        with pytest.raises(InputError, match=said):
            read_plan(tmp_path / "sweep.yaml")

"""Each recipe of a sweep is a file that `--recipe` reads as the sweep's points had it."""

from pytorch_quantizer import Recipe
from pytorch_quantizer.sweeps.plan import parse_plan
from pytorch_quantizer.sweeps.recipe_files import write_recipes

RECIPES = [
    "w8a4_aciq",
    {"name": "a b", "grid": {"weights": ["int4", "int3"]}},
    {"name": "a_b weights=int4", "clip": "kl"},
]


def planned():
    return parse_plan({"recipes": RECIPES, "seeds": [3, 4]}, {})[1]


def test_a_file_a_recipe_whatever_its_name(tmp_path):
    write_recipes(planned(), tmp_path)
    files = {path.name: Recipe.load(str(path)) for path in (tmp_path / "recipes").iterdir()}
    assert {name: recipe.name for name, recipe in files.items()} == {
        "w8a4_aciq.yaml": "w8a4_aciq",
        "a_b_weights=int4.yaml": "a b weights=int4",
        "a_b_weights=int3.yaml": "a b weights=int3",
        "a_b_weights=int4_2.yaml": "a_b weights=int4",
    }
    by_name = {point.recipe.name: point.recipe.replace(seed=0) for point in planned()}
    assert {recipe.name: recipe for recipe in files.values()} == by_name


def test_what_is_right_stays_and_what_is_wrong_is_written_anew(tmp_path):
    write_recipes(planned(), tmp_path)
    right, wrong = (tmp_path / "recipes" / f"{name}.yaml" for name in ("w8a4_aciq", "a_b_weights=int3"))
    wrong.write_text("weights: int8")
    before = right.stat().st_mtime_ns
    write_recipes(planned(), tmp_path)
    assert right.stat().st_mtime_ns == before
    assert Recipe.load(str(wrong)).weights == "int3"

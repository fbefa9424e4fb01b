"""Resources: sizes as people write them."""

from dataclasses import fields

import pytest

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.quantization.recipe import Recipe


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1), ("512MiB", 2**29), ("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("7kb", 7000), ("3 B", 3)],
)
def test_sizes(text, expected):
    assert Resources(max_memory=text).memory_bytes == expected


def test_none_is_left_to_quantize():
    assert Resources().memory_bytes is None


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "0.5", "1 TB", "two", "1e9", "nan", "1GiB2"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match="max_memory must be a number of bytes, as 512MiB or 2GB, got"):
        _ = Resources(max_memory=text).memory_bytes


def test_the_help_says_which_recipes_take_a_limit():
    described = {entry.name: entry.metadata["help"] for entry in fields(Resources)}
    assert described["max_memory"].startswith("where the recipe asks for reconstruction or tuning: ")
    with pytest.raises(InputError, match="max_memory is for reconstruction and tuning; the recipe asks for neither"):
        Resources(max_memory="1GiB").check(Recipe.load("w4a4_second_order"))
    for learned in ("w4a4_brecq", "w4a4_qdrop"):
        Resources(max_memory="1GiB").check(Recipe.load(learned))


def test_an_empty_folder_name_is_not_the_current_folder():
    with pytest.raises(InputError, match=r"resume must be a folder, got '': name one, or leave it out"):
        Resources(resume="")

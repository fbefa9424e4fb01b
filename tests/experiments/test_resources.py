"""Resources: sizes as people write them."""

import pytest

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.resources import Resources


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


def test_an_empty_folder_name_is_not_the_current_folder():
    with pytest.raises(InputError, match=r"resume must be a folder, got '': name one, or leave it out"):
        Resources(resume="")

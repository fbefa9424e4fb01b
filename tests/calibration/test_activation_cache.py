"""ActivationCache: what is written is read, wherever it lies, and memory keeps to its limit."""

import os

import pytest
import torch
from networks import images

from pytorch_quantizer.calibration.activation_cache import ActivationCache
from pytorch_quantizer.errors import InputError

ROW = 3 * 4 * 5 * 4  # bytes of [3, 4, 5]


def filled(cache, count=10):
    values, rows = images(count, 3, 4, 5), cache.room(count, (3, 4, 5))
    for batch in values.split(4):
        rows.append(batch)
    return values, rows


@pytest.mark.parametrize("limit", [float("inf"), 0], ids=["memory", "file"])
def test_what_is_written_is_read(limit):
    values, rows = filled(ActivationCache(limit))
    assert rows.in_memory == (limit > 0)
    indices = torch.tensor([7, 0, 7, 9])
    assert torch.equal(rows.read(indices), values[indices])
    assert torch.equal(rows.read(slice(3, 20)), values[3:])
    assert rows.read(indices).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("limit", [float("inf"), 0], ids=["memory", "file"])
@pytest.mark.parametrize(("shape", "dtype"), [((), torch.float32), ((6,), torch.float64), ((0,), torch.float32)])
def test_rows_of_any_shape_and_type(limit, shape, dtype):
    rows, values = ActivationCache(limit).room(5, shape, dtype), images(5, *shape).to(dtype)
    rows.append(values)
    assert torch.equal(rows.read(slice(0, 5)), values)


def test_what_is_read_can_be_changed():
    values, rows = filled(ActivationCache())
    rows.read(slice(0, 2)).zero_()
    rows.read(torch.tensor([0])).zero_()
    assert torch.equal(rows.read(slice(0, 10)), values)


def test_memory_keeps_to_its_limit_and_is_given_back():
    cache = ActivationCache(15 * ROW)
    _, first = filled(cache)
    _, second = filled(cache)
    assert (first.in_memory, second.in_memory, cache.used) == (True, False, 10 * ROW)
    del first
    _, third = filled(cache)
    assert third.in_memory
    third.release()
    third.release()
    assert cache.used == 0


def test_a_lower_limit_moves_what_is_there_to_files():
    cache = ActivationCache()
    values, large = filled(cache, 20)
    _, small = filled(cache, 5)
    cache.restrict(10 * ROW)
    assert (large.in_memory, small.in_memory, cache.used) == (False, True, 5 * ROW)
    assert torch.equal(large.read(slice(0, 20)), values)


def test_a_half_written_one_is_moved_and_written_on():
    cache = ActivationCache()
    values, rows = images(6, 3, 4, 5), cache.room(6, (3, 4, 5))
    rows.append(values[:2])
    cache.restrict(0)
    rows.append(values[2:])
    assert torch.equal(rows.read(slice(0, 6)), values)


def test_files_have_no_name_to_be_left_behind(tmp_path):
    _, rows = filled(ActivationCache(0, tmp_path))
    assert not rows.in_memory
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.*TMPDIR"):
        ActivationCache(0, tmp_path / "nowhere").room(1, (2,))


def test_a_row_that_was_never_written_is_no_zeros():
    rows = ActivationCache(0).room(5, (2,))
    rows.append(torch.ones(2, 2))
    with pytest.raises(EOFError):
        rows.read(torch.tensor([4]))


@pytest.mark.parametrize("limit", [float("inf"), 0], ids=["memory", "file"])
def test_room_that_was_not_filled_is_not_read(limit):
    rows = ActivationCache(limit).room(5, (2,))
    rows.append(torch.ones(2, 2))
    assert torch.equal(rows.read(slice(0, 5)), torch.ones(2, 2))

"""Loaders give every readable image once and in order, with workers or without, and hide no corrupt file."""

import pytest
import torch
from torch.utils.data import Subset

from pytorch_quantizer.data import CorruptImageError, calibration_loader, load_dataset, make_loader
from pytorch_quantizer.errors import InputError


def labels_of(loader):
    return torch.cat([labels for _, labels in loader]).tolist()


class TestOrder:
    @pytest.mark.parametrize("batch_size", [1, 7, 540, 1000])
    def test_every_image_once_in_order(self, batch_size):
        dataset = load_dataset("digits")
        batches = list(make_loader(dataset, batch_size))
        assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels)
        assert all(len(images) == batch_size for images, _ in batches[:-1])

    def test_workers_change_nothing(self):
        dataset = load_dataset("digits")
        for (ours, labels), (theirs, their_labels) in zip(
            make_loader(dataset, 200), make_loader(dataset, 200, workers=2), strict=True
        ):
            assert torch.equal(ours, theirs)
            assert torch.equal(labels, their_labels)

    def test_a_limit_is_spread_over_the_whole_data_set(self):
        dataset = load_dataset("digits")
        loader = make_loader(dataset, 2, limit=5)
        assert labels_of(loader) == dataset.labels[[0, 108, 216, 324, 432]].tolist()
        assert labels_of(make_loader(dataset, 64, limit=10_000)) == dataset.labels.tolist()

    def test_a_subset_works(self):
        dataset = load_dataset("digits")
        assert labels_of(make_loader(Subset(dataset, [9, 4, 4]), 2)) == dataset.labels[[9, 4, 4]].tolist()

    def test_in_memory_data_takes_no_worker_processes(self):
        assert make_loader(load_dataset("digits"), 8).num_workers == 0

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"batch_size": 0}, "batch size must be at least 1, got 0"),
            ({"batch_size": 8, "limit": 0}, "limit must be at least 1 image, got 0"),
            ({"batch_size": 8, "workers": -1}, "workers can't be negative, got -1"),
        ],
    )
    def test_impossible_numbers(self, arguments, said):
        with pytest.raises(InputError, match=said):
            make_loader(load_dataset("digits"), **arguments)


class TestCalibration:
    def test_draws_without_replacement(self):
        dataset = load_dataset("digits", split="train")
        loader = calibration_loader(dataset, 500, batch_size=64, seed=3)
        indices = list(loader.sampler)
        assert len(set(indices)) == len(indices) == 500
        assert labels_of(loader) == dataset.labels[indices].tolist()
        assert [len(images) for images, _ in loader] == [64] * 7 + [52]

    def test_the_seed_decides(self):
        dataset = load_dataset("digits", split="train")
        draws = [list(calibration_loader(dataset, 100, batch_size=64, seed=seed).sampler) for seed in (1, 1, 2)]
        assert draws[0] == draws[1] != draws[2]

    def test_more_samples_than_images_takes_all(self):
        loader = calibration_loader(load_dataset("digits"), 10_000, batch_size=64, seed=0)
        assert sorted(loader.sampler) == list(range(540))

    @pytest.mark.parametrize("seed", [-1, 2**64])
    def test_a_seed_that_torch_cannot_take(self, seed):
        with pytest.raises(InputError, match=f"seed must be between 0 and .*got {seed}"):
            calibration_loader(load_dataset("digits"), 8, batch_size=8, seed=seed)
        assert len(calibration_loader(load_dataset("digits"), 8, batch_size=8, seed=2**64 - 1)) == 1

    def test_an_empty_draw_is_an_input_error(self):
        with pytest.raises(InputError, match="at least one image, got 0"):
            calibration_loader(load_dataset("digits"), 0, batch_size=64, seed=0)
        with pytest.raises(InputError, match="data set of 0"):
            calibration_loader(Subset(load_dataset("digits"), []), 8, batch_size=64, seed=0)


@pytest.fixture
def damaged(picture_folder):
    """Five images; the second is cut short, the fourth is no image."""
    root = picture_folder({"a/0.png": 0, "a/1.jpg": 1, "a/2.png": 2, "b/3.png": None, "b/4.png": 4})
    cut = root / "a" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:-200])
    return root


@pytest.mark.parametrize("workers", [0, 2])
class TestCorruptFiles:
    def test_stop_and_name_the_file(self, damaged, workers):
        loader = make_loader(load_dataset("folder", damaged), 2, workers=workers)
        with pytest.raises(CorruptImageError, match=r"a/1\.jpg is truncated or not an image.*--skip-corrupt") as error:
            list(loader)
        assert "\n" not in str(error.value)

    def test_a_file_that_is_no_image_is_named(self, damaged, workers):
        (damaged / "a" / "1.jpg").unlink()
        with pytest.raises(InputError, match=r"b/3\.png is truncated or not an image"):
            list(make_loader(load_dataset("folder", damaged), 2, workers=workers))

    @pytest.mark.parametrize("batch_size", [1, 2, 5])
    def test_skipped_ones_are_listed_and_the_others_seen_once(self, damaged, workers, batch_size):
        dataset = load_dataset("folder", damaged, skip_corrupt=True)
        loader = make_loader(dataset, batch_size, workers=workers)
        expected = torch.stack([dataset[index][0] for index in (0, 2, 4)])
        for _ in range(2):  # a second pass lists nothing twice
            batches = list(loader)
            assert torch.equal(torch.cat([images for images, _ in batches]), expected)
            assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 1]
            assert dataset.skipped == [str(damaged / "a" / "1.jpg"), str(damaged / "b" / "3.png")]

    def test_calibration_skips_too(self, damaged, workers):
        dataset = load_dataset("folder", damaged, skip_corrupt=True)
        loader = calibration_loader(Subset(dataset, range(5)), 5, batch_size=5, seed=0, workers=workers)
        assert sum(len(images) for images, _ in loader) == 3
        assert len(dataset.skipped) == 2


class TestCorruptItems:
    def test_an_item_by_itself_always_raises(self, damaged):
        dataset = load_dataset("folder", damaged, skip_corrupt=True)
        with pytest.raises(CorruptImageError) as error:
            dataset[1]
        assert error.value.path == str(damaged / "a" / "1.jpg")

    def test_a_file_of_another_ending_is_not_passed_over_in_silence(self, picture_folder):
        root = picture_folder({"a/0.png": 0, "a/readme.txt": None})
        with pytest.raises(InputError, match=r"readme\.txt is truncated or not an image"):
            list(make_loader(load_dataset("folder", root), 2))

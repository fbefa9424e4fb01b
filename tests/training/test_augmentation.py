"""Augmentation moves images as it says, image by image, and the same under one seed."""

import pytest
import torch

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.training import Augmentation
from pytorch_quantizer.training.augmentation import augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shifted(image, across, down):
    """The image seen through a window moved by whole pixels, its border continued."""
    _, height, width = image.shape
    rows = (torch.arange(height) + down).clamp(0, height - 1)
    columns = (torch.arange(width) + across).clamp(0, width - 1)
    return image[:, rows][:, :, columns]


def test_nothing_asked_nothing_done():
    images = torch.randn(4, 3, 6, 8)
    assert augment(images, Augmentation(), generator()) is images


def test_shifts_are_whole_pixels_of_every_size_up_to_the_limit():
    images = torch.randn(200, 2, 6, 9)
    seen = set()
    for before, after in zip(images, augment(images, Augmentation(shift=2), generator()), strict=True):
        fits = [
            (across, down)
            for across in range(-2, 3)
            for down in range(-2, 3)
            if torch.allclose(shifted(before, across, down), after, atol=1e-4)
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) == 25


def test_flips_half_of_the_images():
    images = torch.randn(200, 1, 5, 7)
    result = augment(images, Augmentation(flip=True), generator())
    flipped = [torch.allclose(after, before.flip(-1), atol=1e-4) for before, after in zip(images, result, strict=True)]
    kept = [torch.allclose(after, before, atol=1e-4) for before, after in zip(images, result, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 70 < sum(flipped) < 130


def test_a_rotation_keeps_distances_in_oblong_images():
    """A dot 8 pixels right of the centre stays 8 pixels away from it, however the image is turned."""
    images = torch.zeros(50, 1, 41, 61)
    images[:, :, 19:22, 37:40] = 1.0  # 8 right of (20, 30)
    result = augment(images, Augmentation(rotation=90), generator())
    weights = result[:, 0] / result[:, 0].sum(dim=(1, 2), keepdim=True)
    rows = (weights.sum(dim=2) * torch.arange(41)).sum(dim=1) - 20
    columns = (weights.sum(dim=1) * torch.arange(61)).sum(dim=1) - 30
    assert torch.allclose((rows**2 + columns**2).sqrt(), torch.full((50,), 8.0), atol=0.1)
    assert rows.min() < -6
    assert rows.max() > 6


def test_scaling_scales_areas():
    images = torch.zeros(100, 1, 40, 40)
    images[:, :, 10:30, 10:30] = 1.0
    areas = augment(images, Augmentation(scaling=0.2), generator()).sum(dim=(1, 2, 3)) / 400
    assert areas.min() >= 0.8**2 - 0.02
    assert areas.max() <= 1.2**2 + 0.02
    assert areas.max() - areas.min() > 0.5


def test_the_seed_decides():
    images = torch.randn(4, 1, 8, 8)
    asked = Augmentation(shift=1, rotation=12, scaling=0.1)
    results = [augment(images, asked, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("arguments", [{"shift": -1}, {"rotation": -1}, {"scaling": 1.0}])
def test_impossible_values(arguments):
    with pytest.raises(InputError, match="augmentation needs"):
        Augmentation(**arguments)

"""Random shifts, rotations, scalings and flips of a batch of images, as one affine map a image.
Deterministic preprocessing lives in data/.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pytorch_quantizer.training.config import Augmentation


def augment(images: Tensor, augmentation: Augmentation, generator: Generator) -> Tensor:
    """Images [N, C, H, W] -> the same shape, each image moved on its own; what moves in continues the border.

    Without rotation and scaling the shifts are whole pixels, so that nothing is blurred. `generator` is the CPU's:
    every device draws the same.
    """
    if augmentation == Augmentation():
        return images
    maps = _affine_maps(images.shape, augmentation, generator).to(images.device)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _affine_maps(shape: torch.Size, augmentation: Augmentation, generator: Generator) -> Tensor:
    """[N, 2, 3]: rows of output coordinates to input coordinates, both in [−1, 1] over the image."""
    number, _, height, width = shape
    turn, size, across, down = (torch.rand(4, number, generator=generator) * 2 - 1).unbind()
    angle = turn * math.radians(augmentation.rotation)
    size = 1 / (1 + size * augmentation.scaling)
    mirror = torch.ones(number)
    if augmentation.flip:
        mirror = torch.randint(2, (number,), generator=generator) * 2.0 - 1
    across, down = across * augmentation.shift, down * augmentation.shift
    if not (augmentation.rotation or augmentation.scaling):
        across, down = across.round(), down.round()
    # The coordinates run over each side by itself: a rotation of an oblong image needs the aspect ratio.
    aspect = height / width
    rows = [
        torch.stack([size * angle.cos() * mirror, -size * angle.sin() * aspect, across * 2 / width], dim=1),
        torch.stack([size * angle.sin() * mirror / aspect, size * angle.cos(), down * 2 / height], dim=1),
    ]
    return torch.stack(rows, dim=1)

"""ImageDataset and its two forms: arrays in memory and image files on disk.
Where the images come from is the business of one file a data set (digits.py, mnist.py, …).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import pil_loader

from pytorch_quantizer.data.preprocessing import Preprocessing
from pytorch_quantizer.errors import InputError, first_line

Sample = tuple[Tensor, int]


class CorruptImageError(InputError):
    """An image file that can't be decoded. `path` is the file."""

    def __init__(self, path: str, cause: str) -> None:
        super().__init__(f"{path} is truncated or not an image ({cause}): mend or remove it, or pass --skip-corrupt")
        self.path = path
        self.cause = cause

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.path, self.cause)


class ImageDataset(Dataset[Sample]):
    """Items (float32 [C, H, W] normalised, int label).

    `skipped` lists the corrupt files that a loader passed over; it stays empty unless `skip_corrupt` is set.
    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        in_channels: int,
        preprocessing: Preprocessing,
        *,
        in_memory: bool,
        skip_corrupt: bool = False,
    ) -> None:
        if len(preprocessing.mean) != in_channels:
            raise InputError(f"{name} has {in_channels} channels, but the preprocessing has {len(preprocessing.mean)}")
        self.name = name
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.in_channels = in_channels
        self.preprocessing = preprocessing
        self.in_memory = in_memory
        self.skip_corrupt = skip_corrupt
        self.skipped: list[str] = []

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError


class ArrayDataset(ImageDataset):
    """Images held in memory as integers, normalised when they are read."""

    def __init__(
        self,
        name: str,
        pixels: NDArray[np.uint8],
        labels: NDArray[np.int64],
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        *,
        highest: int = 255,
    ) -> None:
        """Pixels [N, H, W, C] uint8 in [0, highest]; labels [N]. Raises InputError where the two don't fit."""
        _check_arrays(name, pixels, labels, len(class_names))
        super().__init__(name, class_names, pixels.shape[3], preprocessing, in_memory=True)
        self.pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.highest = highest

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Give a batch at once, its images views of one tensor: the loader's fast path."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        images = self.preprocessing.on_batch(self.pixels[chosen], self.highest)
        return list(zip(images.unbind(0), self.labels[chosen].tolist(), strict=True))


class FileDataset(ImageDataset):
    """Image files, decoded to RGB when they are read."""

    def __init__(
        self,
        name: str,
        files: Sequence[tuple[str, int]],
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        *,
        skip_corrupt: bool = False,
    ) -> None:
        """Files: (path, label) pairs."""
        super().__init__(name, class_names, 3, preprocessing, in_memory=False, skip_corrupt=skip_corrupt)
        self.files = tuple(files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        """Decode one file; raise CorruptImageError where that fails (with `skip_corrupt`, loaders pass over it)."""
        path, label = self.files[index]
        try:
            image = pil_loader(path)
        except Exception as error:  # PIL raises a dozen kinds on damaged files, from SyntaxError to struct.error
            raise CorruptImageError(path, first_line(error)) from error
        return self.preprocessing.on_image(image), label


def require_folder(path: Path, remedy: str) -> Path:
    """Return `path` if it is a folder; raise InputError with the remedy otherwise."""
    if not path.is_dir():
        raise InputError(f"{path} is not a folder: {remedy}")
    return path


def _check_arrays(name: str, pixels: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> None:
    if pixels.ndim != 4 or pixels.dtype != np.uint8:
        raise InputError(f"{name} images must be uint8 [N, H, W, C], got {pixels.dtype} {list(pixels.shape)}")
    if labels.shape != pixels.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{name} needs an integer label an image: {len(pixels)} images, labels {list(labels.shape)}")
    if not len(labels):
        raise InputError(f"{name} holds no images")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"{name} labels must lie in [0, {classes - 1}], got {labels.min()} to {labels.max()}")

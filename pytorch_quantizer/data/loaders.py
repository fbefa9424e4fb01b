"""Loaders: batches in a fixed order, and a seeded draw for calibration.
Corrupt files are handled here, in the main process, so that worker processes make no difference.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from pytorch_quantizer.data.dataset import CorruptImageError, ImageDataset, Sample
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.ranks import ALONE, Ranks

Batch = tuple[Tensor, Tensor]
MOST_WORKERS = 4
HIGHEST_SEED = 2**64 - 1  # torch's generators take 64 bits
FEW_IMAGES = 256  # fewer than this are decoded before workers would have started


class ImageLoader(DataLoader[Any]):
    """Batches (images [N, C, H, W], labels [N]); every readable image once, in the order of `indices`.

    A corrupt file raises CorruptImageError, or with the data set's `skip_corrupt` goes to its `skipped` list.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        indices: Sequence[int],
        batch_size: int,
        *,
        workers: int | None = None,
        drop_last: bool = False,
    ) -> None:
        """`workers` None: 0 in memory, else up to MOST_WORKERS processes. Raises InputError for one out of range."""
        if batch_size < 1:
            raise InputError(f"batch size must be at least 1, got {batch_size}")
        if workers is not None and workers < 0:
            raise InputError(f"workers can't be negative, got {workers}")
        self._images = _image_dataset(dataset)
        super().__init__(
            _Tolerant(dataset),
            batch_size,
            sampler=indices,
            num_workers=_workers(self._images, len(indices)) if workers is None else workers,
            collate_fn=_collate,
            drop_last=drop_last,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Give the batches without the corrupt files; a batch that has nothing else is left out."""
        for batch, corrupt in super().__iter__():
            for error in corrupt:
                self._pass_over(error)
            if batch is not None:
                yield batch

    def _pass_over(self, error: CorruptImageError) -> None:
        if not self._images.skip_corrupt:
            raise error
        if error.path not in self._images.skipped:
            self._images.skipped.append(error.path)


def make_loader(
    dataset: Dataset[Sample],
    batch_size: int,
    *,
    workers: int | None = None,
    limit: int | None = None,
    ranks: Ranks = ALONE,
) -> ImageLoader:
    """Batches of a data set in its own order; `limit` takes that many images spread evenly over it.

    Spread evenly because the first N of a folder of classes would all be of one class. `ranks`: of several processes,
    each of which gets whole batches of the one order, its share.
    """
    images = len(dataset)  # type: ignore[arg-type]
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1 image, got {limit}")
    kept = images if limit is None else min(limit, images)
    indices = [i * images // kept for i in range(kept)]
    batches = [indices[first : first + max(batch_size, 1)] for first in range(0, kept, max(batch_size, 1))]
    return ImageLoader(dataset, [*chain.from_iterable(ranks.share(batches))], batch_size, workers=workers)


def calibration_loader(
    dataset: Dataset[Sample], samples: int, *, batch_size: int, seed: int, workers: int | None = None
) -> ImageLoader:
    """Batches over `samples` images drawn without replacement; the whole data set, shuffled, where it is smaller.

    The draw depends on the seed and the data set's size alone. Raises InputError for an empty draw, and for a seed
    outside [0, 2^64 − 1].
    """
    if not 0 <= seed <= HIGHEST_SEED:
        raise InputError(f"seed must be between 0 and 2^64 - 1, got {seed}")
    images = len(dataset)  # type: ignore[arg-type]
    if samples < 1 or images < 1:
        raise InputError(f"calibration needs at least one image, got {samples} of a data set of {images}")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    return ImageLoader(dataset, order[:samples].tolist(), batch_size, workers=workers)


class _Tolerant(Dataset[Any]):
    """The data set, with a corrupt file as a value: an exception from a worker loses its type and its one line."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample | CorruptImageError:
        try:
            return self.dataset[index]
        except CorruptImageError as error:
            return error.with_traceback(None)

    def __getitems__(self, indices: list[int]) -> Sequence[Sample | CorruptImageError]:
        if _image_dataset(self.dataset).in_memory and hasattr(self.dataset, "__getitems__"):
            batch: list[Sample] = self.dataset.__getitems__(indices)
            return batch
        return [self[index] for index in indices]


def _collate(samples: Sequence[Sample | CorruptImageError]) -> tuple[Batch | None, list[CorruptImageError]]:
    good = [sample for sample in samples if not isinstance(sample, CorruptImageError)]
    corrupt = [sample for sample in samples if isinstance(sample, CorruptImageError)]
    return (tuple(default_collate(good)) if good else None), corrupt


def _image_dataset(dataset: Dataset[Sample]) -> ImageDataset:
    while not isinstance(dataset, ImageDataset):
        if not hasattr(dataset, "dataset"):
            raise InputError(f"a loader needs an ImageDataset or a Subset of one, got {type(dataset).__name__}")
        dataset = dataset.dataset
    return dataset


def _workers(dataset: ImageDataset, images: int) -> int:
    if dataset.in_memory or images < FEW_IMAGES:
        return 0
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

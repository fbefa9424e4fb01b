"""A digest of a data set: by it a result is known to be of the same images, wherever they lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pytorch_quantizer.data.dataset import FileDataset, ImageDataset
from pytorch_quantizer.data.loaders import make_loader

PROBES = 16  # image files of a data set that stand for all
BATCH = 256


def images_digest(images: ImageDataset) -> str:
    """SHA-256 over images as the network sees them, and labels; of files over names, sizes, labels and PROBES images.

    Raises CorruptImageError for one that can't be decoded, unless the data set passes those over.
    """
    digest = hashlib.sha256(f"{len(images)} {images.preprocessing}".encode())
    for path, label in images.files if isinstance(images, FileDataset) else ():
        digest.update(f"{Path(path).name} {Path(path).stat().st_size} {label}\n".encode())
    limit = None if images.in_memory else PROBES
    for pixels, labels in make_loader(images, BATCH, workers=0, limit=limit):
        digest.update(pixels.contiguous().numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()

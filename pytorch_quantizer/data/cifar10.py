"""CIFAR-10 (Krizhevsky 2009), 32x32 RGB: the python batches in torchvision's layout, or .npz files.
Neither form is downloaded; both are read without executing anything that a file says.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytorch_quantizer.data.dataset import ArrayDataset, require_folder
from pytorch_quantizer.data.preprocessing import Preprocessing
from pytorch_quantizer.errors import InputError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# ImageNet's values: what the published CIFAR ResNets were trained with.
PREPROCESSING = Preprocessing()
BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
ARCHIVES = {"train": ("train.npz", "train_10k.npz"), "test": ("test.npz",)}
LAYOUT = "give the folder that holds cifar-10-batches-py/ (or its batches), or train.npz / train_10k.npz and test.npz"

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load(
    root: Path | None, *, split: str = "test", preprocessing: Preprocessing | None = None, skip_corrupt: bool = False
) -> ArrayDataset:
    """Load one split from `root`; the python batches win where both forms are there. `skip_corrupt` means nothing."""
    if root is None:
        raise InputError(f"cifar10 needs --data PATH: {LAYOUT}")
    files = _files(require_folder(root, LAYOUT), split)
    if not files:
        raise InputError(f"no CIFAR-10 {split} images in {root}: {LAYOUT}")
    parts = [_read(file) for file in files]
    pixels = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return ArrayDataset("cifar10", pixels, labels, CLASS_NAMES, preprocessing or PREPROCESSING)


def has_split(root: Path | None, split: str) -> bool:
    """Whether the files of a split are there."""
    return root is not None and bool(_files(root, split))


def _files(root: Path, split: str) -> list[Path]:
    for folder in (root / "cifar-10-batches-py", root):
        batches = [folder / name for name in BATCHES[split]]
        if all(batch.is_file() for batch in batches):
            return batches
    return [root / name for name in ARCHIVES[split] if (root / name).is_file()][:1]


def _read(file: Path) -> Arrays:
    try:
        return _read_npz(file) if file.suffix == ".npz" else _read_batch(file)
    except InputError:
        raise
    except Exception as error:  # a damaged archive or pickle fails in many ways; all mean the same to the user
        raise InputError(f"{file} can't be read as CIFAR-10 ({error or type(error).__name__}): copy it anew") from error


def _read_npz(file: Path) -> Arrays:
    with np.load(file, allow_pickle=False) as archive:
        absent = {"images", "labels"} - set(archive.files)
        if absent:
            raise InputError(f"{file} lacks {', '.join(sorted(absent))}: it must hold images [N, 32, 32, 3] and labels")
        return archive["images"], archive["labels"]


def _read_batch(file: Path) -> Arrays:
    batch = _NumpyUnpickler(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    images = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.asarray(batch["labels"], dtype=np.int64)


class _NumpyUnpickler(pickle.Unpickler):
    """Unpickles plain values and NumPy arrays, nothing else: a pickle may otherwise run any code."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Give what an array needs; raise UnpicklingError for anything else."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)

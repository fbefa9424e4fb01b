"""MNIST (LeCun et al. 1998), 28x28 grey, from its IDX files, compressed or not.
torchvision's reader wants the files unpacked, all four at once and in one place; this one reads what is there.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pytorch_quantizer.data.dataset import ArrayDataset, require_folder
from pytorch_quantizer.data.preprocessing import Preprocessing
from pytorch_quantizer.errors import InputError

# Mean and standard deviation of the 60,000 training images.
PREPROCESSING = Preprocessing(mean=(0.1307,), std=(0.3081,))
PREFIXES = {"train": "train", "test": "t10k"}
FOLDERS = ("", "raw", "MNIST/raw")
UNSIGNED_BYTE = 8  # IDX's code for the element type
LAYOUT = "give the folder that holds t10k-images-idx3-ubyte[.gz] and its companions, or one with raw/ or MNIST/raw/"


def load(
    root: Path | None, *, split: str = "test", preprocessing: Preprocessing | None = None, skip_corrupt: bool = False
) -> ArrayDataset:
    """Load one split from `root`, `root`/raw or `root`/MNIST/raw. `skip_corrupt` means nothing here."""
    if root is None:
        raise InputError(f"mnist needs --data PATH: {LAYOUT}")
    files = _files(require_folder(root, LAYOUT), split)
    if files is None:
        raise InputError(f"no MNIST {split} images and labels in {root}: {LAYOUT}")
    images, labels = read_idx(files[0], dimensions=3), read_idx(files[1], dimensions=1)
    class_names = [str(digit) for digit in range(10)]
    pixels = images[..., np.newaxis]
    return ArrayDataset("mnist", pixels, labels.astype(np.int64), class_names, preprocessing or PREPROCESSING)


def has_split(root: Path | None, split: str) -> bool:
    """Whether images and labels of a split are there."""
    return root is not None and _files(root, split) is not None


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes: two zero bytes, type, rank, big-endian sizes, data.

    Raises InputError where the header isn't that, or the data is shorter or longer than the header says.
    """
    content = _bytes(path)
    header = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, UNSIGNED_BYTE, dimensions)) or len(content) < header:
        raise InputError(f"{path} is not an IDX file of bytes in {dimensions} dimensions: get it anew")
    shape = np.frombuffer(content, ">u4", count=dimensions, offset=4).tolist()
    if len(content) - header != math.prod(shape):
        raise InputError(
            f"{path} should hold {math.prod(shape)} bytes of data, has {len(content) - header}: get it anew"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _bytes(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} can't be read ({error}): get it anew") from error


def _files(root: Path, split: str) -> tuple[Path, Path] | None:
    for folder in (root / name for name in FOLDERS):
        images = _either(folder / f"{PREFIXES[split]}-images-idx3-ubyte")
        labels = _either(folder / f"{PREFIXES[split]}-labels-idx1-ubyte")
        if images and labels:
            return images, labels
    return None


def _either(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None

"""The data sets by name: one literal, and the two functions that look a name up in it.
What a data set is lives in its own file.
"""

from pathlib import Path
from types import ModuleType

from pytorch_quantizer.data import cifar10, digits, folder, imagenet, mnist
from pytorch_quantizer.data.dataset import ImageDataset, require_folder
from pytorch_quantizer.data.preprocessing import Preprocessing
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.user_path import user_path

DATASETS: dict[str, ModuleType] = {
    "digits": digits,
    "mnist": mnist,
    "cifar10": cifar10,
    "imagenet": imagenet,
    "folder": folder,
}
SPLITS = ("train", "test")


def load_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    split: str = "test",
    preprocessing: Preprocessing | None = None,
    skip_corrupt: bool = False,
) -> ImageDataset:
    """Load a data set by its name in DATASETS; `root` is the folder it lies in, `split` "train" or "test".

    `preprocessing` None: the data set's own. `skip_corrupt`: loaders pass over image files that can't be decoded and
    list them in `.skipped`, instead of raising. Raises InputError for an unknown name, split or layout.
    """
    dataset: ImageDataset = _module(name, split).load(
        _expand(root), split=split, preprocessing=preprocessing, skip_corrupt=skip_corrupt
    )
    return dataset


def has_split(name: str, root: str | Path | None, split: str) -> bool:
    """Whether `load_dataset` would find that split."""
    found: bool = _module(name, split).has_split(_expand(root), split)
    return found


def infer_dataset(root: str | Path) -> str:
    """The name of the data set that a folder holds, by what lies in it: "folder" where it is no other's layout.

    Raises InputError where `root` is not a folder.
    """
    path = require_folder(user_path(root), "--data takes the folder that a data set lies in")
    if imagenet.looks_like(path):
        return "imagenet"
    arrays = (name for name in ("cifar10", "mnist") if any(has_split(name, path, split) for split in SPLITS))
    return next(arrays, "folder")


def _module(name: str, split: str) -> ModuleType:
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return DATASETS[name]


def _expand(root: str | Path | None) -> Path | None:
    return None if root is None else user_path(root)

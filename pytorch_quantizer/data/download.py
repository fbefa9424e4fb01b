"""Fetching a data set into its folder, where torchvision knows how.
Reading what lies there is the business of one file a data set (cifar10.py, mnist.py).
"""

from pathlib import Path
from typing import Any

from torchvision.datasets import CIFAR10, MNIST

from pytorch_quantizer.data.registry import SPLITS, has_split
from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.user_path import user_path

SOURCES: dict[str, Any] = {"cifar10": CIFAR10, "mnist": MNIST}
EMBEDDED = ("digits",)


def download(name: str, root: str | Path | None) -> None:
    """Fetch a data set into `root`, as torchvision does, checksums included; nothing where it is there already.

    Raises InputError for a data set that torchvision can't fetch, without a folder, and where fetching fails.
    """
    if name in EMBEDDED:
        return
    if name not in SOURCES:
        raise InputError(
            f"{name} can't be downloaded, only {', '.join(SOURCES)}: get it by hand and leave download out"
        )
    if root is None:
        raise InputError(f"download needs --data PATH, the folder that {name} is to be fetched into")
    folder = user_path(root)
    if folder.is_dir() and all(has_split(name, folder, split) for split in SPLITS):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        SOURCES[name](folder, download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum is a RuntimeError
        raise InputError(
            f"can't download {name} into {folder} ({first_line(error)}): check the network, or put its files there"
        ) from error

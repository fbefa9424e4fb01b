"""ILSVRC2012 from folders named by wnid. Labels come from the list of 1,000 wnids that ships here, never from a
folder's position: a part of the classes gets the right labels too. Nothing is downloaded.
"""

from pathlib import Path

from pytorch_quantizer.data.dataset import FileDataset, require_folder
from pytorch_quantizer.data.folder import SPLITS, list_images, split_folder
from pytorch_quantizer.data.preprocessing import Preprocessing
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.user_path import user_path

PREPROCESSING = Preprocessing(resize=256, crop=224)
DEFAULT_ROOT = Path("~/datasets/ILSVRC2012")
WNIDS = Path(__file__).with_name("imagenet_wnids.txt")
LAYOUT = "give the folder that holds val/<wnid>/*.JPEG, or the <wnid> folders themselves"


def load(
    root: Path | None, *, split: str = "test", preprocessing: Preprocessing | None = None, skip_corrupt: bool = False
) -> FileDataset:
    """Load PATH/train, or for the test split PATH/val or PATH itself; PATH None: DEFAULT_ROOT.

    Raises InputError for folders that aren't among the 1,000 wnids and for a folder without images.
    """
    root = require_folder(root or user_path(DEFAULT_ROOT), f"pass --data PATH: {LAYOUT}")
    images = split_folder(root, split)
    if images is None:
        raise InputError(f"{root} has no train folder: pass --data PATH: it must hold train/<wnid>/*.JPEG")
    wnids = WNIDS.read_text().split()
    files = list_images(images, {wnid: label for label, wnid in enumerate(wnids)})
    return FileDataset("imagenet", files, wnids, preprocessing or PREPROCESSING, skip_corrupt=skip_corrupt)


def looks_like(root: Path) -> bool:
    """Whether a folder named by one of the 1,000 wnids is where `load` would look for it."""
    wnids = set(WNIDS.read_text().split())
    places = [images for split in SPLITS if (images := split_folder(root, split)) is not None]
    return any(entry.name in wnids and entry.is_dir() for images in places for entry in images.iterdir())


def has_split(root: Path | None, split: str) -> bool:
    """Whether the folder of a split is there."""
    root = root or user_path(DEFAULT_ROOT)
    return root.is_dir() and split_folder(root, split) is not None

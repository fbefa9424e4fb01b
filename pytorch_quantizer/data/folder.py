"""Any folder of class folders (torchvision's ImageFolder layout), and the listing that ImageNet shares.
Classes are the sorted names of the folders; ImageNet's labels come from its own list (imagenet.py).
"""

from pathlib import Path

from torchvision.datasets.folder import make_dataset

from pytorch_quantizer.data.dataset import FileDataset, require_folder
from pytorch_quantizer.data.preprocessing import Preprocessing
from pytorch_quantizer.errors import InputError

PREPROCESSING = Preprocessing(resize=256, crop=224)
SPLITS = {"train": ("train",), "test": ("val", "test")}
WITH_SPLITS = "train/ and val/, each with one sub-folder of images a class"
LAYOUT = "give a folder with one sub-folder of images a class, or with train/ and val/ of that form"


def load(
    root: Path | None, *, split: str = "test", preprocessing: Preprocessing | None = None, skip_corrupt: bool = False
) -> FileDataset:
    """Load PATH/train, or PATH/val, PATH/test or PATH itself for the test split.

    Where PATH/train is there its folders are the classes, so that both splits number them alike.
    Raises InputError for a folder without images and for a class that the training split doesn't know.
    """
    if root is None:
        raise InputError(f"folder needs --data PATH: {LAYOUT}")
    images = split_folder(require_folder(root, LAYOUT), split)
    if images is None:
        raise InputError(f"{root} has no train folder, which training needs: give a folder with {WITH_SPLITS}")
    train = split_folder(root, "train")
    class_names = class_folders(train or images)
    files = list_images(images, {name: label for label, name in enumerate(class_names)})
    return FileDataset("folder", files, class_names, preprocessing or PREPROCESSING, skip_corrupt=skip_corrupt)


def load_unlabelled(root: Path, preprocessing: Preprocessing, *, skip_corrupt: bool = False) -> FileDataset:
    """Every visible file below a folder, however deep, sorted by path, as an image without a class (label 0).

    Raises InputError where it is no folder or holds no file.
    """
    root = require_folder(root, "give a folder of images")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    seen = [path for path in files if all(map(_visible, path.relative_to(root).parts))]
    if not seen:
        raise InputError(f"{root} holds no images: give a folder of images")
    return FileDataset("images", [(str(path), 0) for path in seen], ["image"], preprocessing, skip_corrupt=skip_corrupt)


def has_split(root: Path | None, split: str) -> bool:
    """Whether the folder of a split is there."""
    return root is not None and root.is_dir() and split_folder(root, split) is not None


def split_folder(root: Path, split: str) -> Path | None:
    """Find where the class folders of a split lie: in a folder of its own, or for the test split `root` itself."""
    own = [root / name for name in SPLITS[split] if (root / name).is_dir()]
    if own:
        return own[0]
    return root if split == "test" else None


def class_folders(images: Path) -> list[str]:
    """List the names of the class folders, sorted. Raises InputError where there is none."""
    names = sorted(entry.name for entry in images.iterdir() if entry.is_dir() and _visible(entry.name))
    if not names:
        raise InputError(f"{images} holds no class folders with images: {LAYOUT}")
    return names


def list_images(images: Path, labels: dict[str, int]) -> list[tuple[str, int]]:
    """List (path, label) of every visible file in the class folders, sorted by path.

    Files of any ending count: one that isn't an image is to be named when it is read, not passed over in silence.
    Raises InputError for a folder that `labels` doesn't know, and where there is no file at all.
    """
    names = class_folders(images)
    unknown = [name for name in names if name not in labels]
    if unknown:
        raise InputError(
            f"{images / unknown[0]} is not a known class ({len(unknown)} of {len(names)} are not): remove or rename it"
        )
    files: list[tuple[str, int]] = make_dataset(
        images, {name: labels[name] for name in names}, is_valid_file=_visible_file, allow_empty=True
    )
    if not files:
        raise InputError(f"{images} holds no images in its {len(names)} class folders: {LAYOUT}")
    return files


def _visible_file(path: str) -> bool:
    return _visible(Path(path).name)


def _visible(name: str) -> bool:
    return not name.startswith(".")

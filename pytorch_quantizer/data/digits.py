"""scikit-learn's digits: 1,797 real handwritten digits, 8x8, grey, part of the library: nothing to download.
The split into 1,257 training and 540 test images is this project's, fixed for good.
"""

from pathlib import Path

import numpy as np

from pytorch_quantizer.data.dataset import ArrayDataset
from pytorch_quantizer.data.preprocessing import Preprocessing
from pytorch_quantizer.errors import InputError

TEST_IMAGES = 540
SPLIT_SEED = 0
HIGHEST = 16  # the data set counts ink in 17 steps
# Mean and standard deviation of the training split, rounded.
PREPROCESSING = Preprocessing(mean=(0.305,), std=(0.376,))


def load(
    root: Path | None = None,
    *,
    split: str = "test",
    preprocessing: Preprocessing | None = None,
    skip_corrupt: bool = False,
) -> ArrayDataset:
    """Load one split; `skip_corrupt` means nothing here. Raises InputError for a `root`: there is nothing to read."""
    if root is not None:
        raise InputError(
            f"digits is embedded and reads no folder, got {root}: "
            "did you mean --dataset imagenet, cifar10, mnist or folder?"
        )
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, random_state=SPLIT_SEED, stratify=labels
    )
    chosen = np.sort(train if split == "train" else test)
    pixels = images[chosen].astype(np.uint8).reshape(-1, 8, 8, 1)
    class_names = [str(digit) for digit in range(10)]
    return ArrayDataset("digits", pixels, labels[chosen], class_names, preprocessing or PREPROCESSING, highest=HIGHEST)


def has_split(root: Path | None, split: str) -> bool:
    """Both splits are always there."""
    return True

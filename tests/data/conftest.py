"""Fixtures of the data tests: small folders of real image files."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture_folder(tmp_path):
    """Write files below a fresh folder: {path: seed of a random image, or None for a file that is no image}."""

    def write(files):
        for name, seed in files.items():
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if seed is None:
                path.write_text("not an image\n")
            else:
                pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
        return tmp_path

    return write

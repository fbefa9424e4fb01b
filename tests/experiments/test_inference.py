"""Where a job's images come from: its splits, or for calibration another folder."""

import numpy as np
import pytest
from PIL import Image

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, resolved


@pytest.fixture
def photographs(tmp_path):
    """Images of several sizes at several depths, among other things."""
    random = np.random.default_rng(0)
    for name, size in (
        ("b.png", (40, 30)),
        ("a/c.png", (64, 90)),
        ("a/deep/d.png", (33, 33)),
        ("a/.hidden.png", (9, 9)),
    ):
        (tmp_path / "photographs" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "photographs" / name)
    return tmp_path / "photographs"


@pytest.fixture
def cifar(tmp_path):
    random = np.random.default_rng(1)
    for split in ("train", "test"):
        pixels = random.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=pixels, labels=np.arange(20) % 10)
    return tmp_path


def test_calibration_has_the_training_split(cifar):
    test, calibration, source = load_images(resolved(InferenceConfig(dataset="cifar10", data=cifar)))
    assert (len(test), len(calibration), source) == (20, 20, "train")


def test_calibration_has_another_folder_where_it_is_given(cifar, photographs):
    config = InferenceConfig(dataset="cifar10", data=cifar, calibration_data=photographs)
    test, calibration, source = load_images(resolved(config))
    assert (len(test), len(calibration), source) == (20, 3, str(photographs))
    assert [tuple(image.shape) for image, _ in calibration] == [(3, 32, 32)] * 3
    assert [path[len(str(photographs)) + 1 :] for path, _ in calibration.files] == ["a/c.png", "a/deep/d.png", "b.png"]


@pytest.mark.parametrize(("name", "said"), [("nowhere", "is not a folder"), ("empty", "holds no images")])
def test_a_folder_without_images(cifar, tmp_path, name, said):
    (tmp_path / "empty").mkdir()
    config = InferenceConfig(dataset="cifar10", data=cifar, calibration_data=tmp_path / name)
    with pytest.raises(InputError, match=said):
        load_images(resolved(config))


def test_images_of_other_channels_are_refused(photographs):
    with pytest.raises(InputError, match="3 channels, but the preprocessing has 1"):
        load_images(resolved(InferenceConfig(dataset="digits", calibration_data=photographs)))

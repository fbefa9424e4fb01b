"""Preprocessing does what torchvision's published presets do."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import get_model_weights

from pytorch_quantizer.data import Preprocessing
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.models import default_preprocessing


@pytest.mark.parametrize("arch", ["resnet50", "efficientnet_b1", "inception_v3", "convnext_tiny", "swin_t", "vit_l_16"])
def test_equals_torchvisions_own_transforms_to_the_bit(arch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8))
    published = get_model_weights(arch)["IMAGENET1K_V1"].transforms()
    assert torch.equal(default_preprocessing(arch, "imagenet").on_image(image), published(image))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"resize": 0}, "resize must be at least 1 pixel, got 0"),
        ({"crop": -3}, "crop must be at least 1 pixel, got -3"),
        ({"mean": (0.5,)}, "a value a channel"),
        ({"mean": (0.5,), "std": (0.0,)}, "std > 0"),
        ({"interpolation": "cubic"}, "must be one of nearest.*got 'cubic'"),
    ],
)
def test_impossible_values(arguments, said):
    with pytest.raises(InputError, match=said):
        Preprocessing(**arguments)


def test_a_batch_is_resized_to_its_shorter_side_and_cropped():
    pixels = torch.randint(0, 256, (2, 3, 30, 40), dtype=torch.uint8)
    assert Preprocessing(resize=60).on_batch(pixels).shape == (2, 3, 60, 80)
    assert Preprocessing(resize=60, crop=50).on_batch(pixels).shape == (2, 3, 50, 50)

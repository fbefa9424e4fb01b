"""Preprocessing: from pixels to the normalised float tensor that a network reads.
Decoding files and choosing a network's own values live elsewhere (files.py, models/).
"""

from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from pytorch_quantizer.errors import InputError

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")  # torchvision's


@dataclass(frozen=True)
class Preprocessing:
    """Resize (shorter side, pixels), centre crop (pixels), scale to [0, 1], then (x − mean) / std per channel."""

    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name, pixels in (("resize", self.resize), ("crop", self.crop)):
            if pixels is not None and pixels < 1:
                raise InputError(f"{name} must be at least 1 pixel, got {pixels}")
        if len(self.mean) != len(self.std) or not all(deviation > 0 for deviation in self.std):
            raise InputError(f"mean and std need a value a channel, std > 0, got {self.mean} and {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")

    def on_image(self, image: Image) -> Tensor:
        """PIL image -> float32 [C, H, W]; the same operations as torchvision's classification presets."""
        from torchvision.transforms.functional import to_tensor

        return self._normalized(to_tensor(self._fitted(image)))

    def on_batch(self, pixels: Tensor, highest: int = 255) -> Tensor:
        """Integer pixels [N, C, H, W] in [0, highest] -> float32 [N, C, H, W]."""
        images = pixels.to(torch.float32, memory_format=torch.contiguous_format) / highest
        return self._normalized(self._fitted(images))

    def _fitted(self, images: Any) -> Any:
        """A PIL image or a batch, resized and cropped."""
        if self.resize is None and self.crop is None:
            return images
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import center_crop, resize

        if self.resize is not None:
            images = resize(images, [self.resize], InterpolationMode(self.interpolation), antialias=True)
        return images if self.crop is None else center_crop(images, [self.crop, self.crop])

    def _normalized(self, images: Tensor) -> Tensor:
        """[…, C, H, W] in [0, 1] -> the same shape."""
        mean, deviation = (images.new_tensor(values).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / deviation

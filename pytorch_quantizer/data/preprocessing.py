"""Preprocessing: from pixels to the normalised float tensor that a network reads.
Decoding files and choosing a network's own values live elsewhere (files.py, models/).
"""

from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from pytorch_quantizer.errors import InputError


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
        names = [mode.value for mode in InterpolationMode]
        if self.interpolation not in names:
            raise InputError(f"interpolation must be one of {', '.join(names)}, got {self.interpolation!r}")

    def on_image(self, image: Image) -> Tensor:
        """PIL image -> float32 [C, H, W]; the same operations as torchvision's classification presets."""
        if self.resize is not None:
            image = F.resize(image, [self.resize], InterpolationMode(self.interpolation))
        if self.crop is not None:
            image = F.center_crop(image, [self.crop, self.crop])
        return F.normalize(F.to_tensor(image), list(self.mean), list(self.std))

    def on_batch(self, pixels: Tensor, highest: int = 255) -> Tensor:
        """Integer pixels [N, C, H, W] in [0, highest] -> float32 [N, C, H, W]."""
        images = pixels.to(torch.float32, memory_format=torch.contiguous_format) / highest
        if self.resize is not None:
            images = F.resize(images, [self.resize], InterpolationMode(self.interpolation), antialias=True)
        if self.crop is not None:
            images = F.center_crop(images, [self.crop, self.crop])
        return F.normalize(images, list(self.mean), list(self.std))

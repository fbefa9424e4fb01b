"""For how many images corrections keep tensors: as many as memory has room for.
What corrections take then, and a limit of that, are correction_memory.py's business.
"""

from __future__ import annotations

import torch
from torch import fx

from pytorch_quantizer.calibration.memory import size_of
from pytorch_quantizer.environment import free_memory
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.user_warnings import warn_user

TENSORS_AT_ONCE = 6  # of the largest size, that correcting holds of each image: 4.1 (ResNet-18) to 5.0 (SqueezeNet)
CORRECTION_BYTES = 8 * 2**30


class CorrectionRoom:
    """For how many images a correction may keep tensors, and for how many this machine could."""

    def __init__(self, graph: fx.GraphModule, device: torch.device) -> None:
        self._image_bytes = TENSORS_AT_ONCE * max(map(size_of, graph.graph.nodes)) * torch.float32.itemsize
        self.most = max(1, CORRECTION_BYTES // self._image_bytes)
        self.free = free_memory(device)
        self._has_warned = False

    def granted(self, kept: int, more: int) -> int:
        """How many more images may be kept, of a batch. Raises InputError where they find no room."""
        given = min(more, self.most - kept)
        if given < more and not self._has_warned:
            self._has_warned = True
            warn_user(f"correction_images: {self.most} are used, which take 8 GiB of memory")
        needed = (kept + given) * self._image_bytes
        if needed > self.free:
            raise InputError(
                f"correcting on {kept + given} images takes about {needed / 2**30:.1f} GiB and {self.free / 2**30:.1f} "
                f"are free: set correction_images to {self.free // self._image_bytes} or fewer"
            )
        return given

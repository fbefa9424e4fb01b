"""Memory formats: which layers must not be trained on channels-last tensors, though convolutions are fast on them."""

from __future__ import annotations

from torch import nn

BLOCK = 16  # channels that oneDNN's kernels take at a time, at most


def needs_channels_first(layer: nn.Module) -> bool:
    """Whether the gradient of a layer's weight, on channels-last tensors on a CPU, is written past its memory.

    oneDNN does that for 1×1 convolutions with a stride and of fewer input channels than its block: its issue 6035,
    https://github.com/uxlfoundation/oneDNN/issues/6035, met with torch 2.14 on AVX2.
    """
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < BLOCK
    )

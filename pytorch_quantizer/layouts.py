"""Memory formats: which layers must not be trained on channels-last tensors, though convolutions are fast on them."""

from __future__ import annotations

from torch import Tensor, nn

BLOCK = 16  # channels that oneDNN's kernels take at a time, at most: with AVX-512


def needs_channels_first(layer: nn.Module) -> bool:
    """Whether the gradient of a layer's weight, on channels-last tensors on a CPU, is written past its memory.

    oneDNN does that for 1×1 convolutions with a stride and of fewer input channels than its block: its issue 6035,
    https://github.com/uxlfoundation/oneDNN/issues/6035, met with torch 2.14 on AVX2 at 4, 5 and 6 channels. Groups of
    few channels were not seen to fail; they are counted in.
    """
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < BLOCK
    )


def trained_formats(layer: nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A layer's input and weight as they can be trained: channels first where it must be, which either would decide."""
    if x.device.type != "cpu" or not needs_channels_first(layer):
        return x, weight
    return x.contiguous(), weight.reshape(-1).reshape(weight.shape)  # of a 1×1 weight contiguous() is any format

"""Second moments of what layers read, as each output channel's weights see it: for ranges that know what they cost.
The search itself is quantization/output_error.py's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.operations import Layer

ROWS = 16384  # windows of a batch that are looked at, at most


def windows(layer: Layer, x: Tensor) -> Tensor:
    """[G, R, K]: the K inputs of each of G groups of output channels, at R places of the images x, padding included.

    layer: one of operations.UNFOLDABLE. x: what it reads, [N, C, …] (a convolution) or [N, …, C] (linear). Of whole
    images, as many as give about ROWS places.
    """
    if isinstance(layer, nn.Linear):
        rows = x.flatten(0, -2)
        return rows[:: max(1, len(rows) // ROWS)].unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    places = max(1, x[0, 0].numel() // max(1, int(torch.tensor(layer.stride).prod())))
    some = x[: max(1, ROWS // places)]
    padded = F.pad(some, layer._reversed_padding_repeated_twice, mode=mode)
    if isinstance(layer, nn.Conv1d):
        padded = padded.unsqueeze(2)
    kernel, stride, dilation = (
        (1, *given) if isinstance(layer, nn.Conv1d) else given
        for given in (layer.kernel_size, layer.stride, layer.dilation)
    )
    unfolded = F.unfold(padded, kernel, dilation=dilation, stride=stride)  # [N, C·k, L], channels outermost
    images, inputs, _ = unfolded.shape
    grouped = unfolded.reshape(images, layer.groups, inputs // layer.groups, -1)
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


class InputMoments:
    """Σ x xᵀ and Σ x of a layer's windows, summed over batches in float64."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.count = 0
        self.sums: Tensor | None = None
        self.products: Tensor | None = None

    def __call__(self, x: Tensor) -> None:
        """Add a batch of what the layer reads; an empty one adds nothing."""
        if not x.numel():
            return
        rows = windows(self.layer, x)
        products, sums = torch.bmm(rows.mT, rows).double(), rows.sum(1).double()
        self.products = products if self.products is None else self.products + products
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += rows.shape[1]

    def second_moments(self, *, centred: bool) -> Tensor:
        """[G, K, K]: E[x xᵀ], or the covariance where ``centred``. Raises InputError where nothing was seen."""
        if self.products is None or self.sums is None:
            raise InputError("no value was observed; the calibration set or the tensor is empty")
        products, mean = self.products / self.count, self.sums / self.count
        return products - mean.unsqueeze(2) * mean.unsqueeze(1) if centred else products

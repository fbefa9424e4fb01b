"""Second moments of what layers read, as each output channel's weights see it: for ranges that know what they cost.
The search itself is quantization/output_error.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pytorch_quantizer.calibration.activation_cache import ActivationCache, Rows
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.operations import Layer

ROWS = 16384  # windows of a batch that are looked at, at most
AT_ONCE = 2**20  # products that are added to those in a file at a time: 8 MiB


def windows(layer: Layer, x: Tensor) -> Tensor:
    """[G, R, K]: the K inputs of each of G groups of output channels, at R places of the images x, padding included.

    layer: one of operations.UNFOLDABLE. x: what it reads, [N, C, …] (a convolution) or [N, …, C] (linear). Of whole
    images, as many as give about ROWS places.
    """
    if isinstance(layer, nn.Linear):
        rows = x.flatten(0, -2)
        return rows[:: max(1, len(rows) // ROWS)].unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    places = max(1, x[0, 0].numel() // math.prod(layer.stride))
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


def window_count(layer: Layer, read: Sequence[int], made: Sequence[int], images: int) -> int:
    """How many places ``windows`` looks at of so many images, at most.

    read, made: shapes [N, …] of what the layer reads and of what it gives, N being any.
    """
    if isinstance(layer, nn.Linear):
        rows = images * math.prod(read[1:-1])
        return -(-rows // max(1, rows // ROWS))
    places = max(1, math.prod(read[2:]) // math.prod(layer.stride))
    return min(images, max(1, ROWS // places)) * math.prod(made[2:])


class InputMoments:
    """Σ x xᵀ and Σ x of a layer's windows, summed over batches in float64.

    cache: where the products lie, a row a row; unless given they stay on the layer's device.
    """

    def __init__(self, layer: Layer, cache: ActivationCache | None = None) -> None:
        self.layer, self.cache = layer, cache
        self.count = 0
        self.sums: Tensor | None = None
        self._products: Tensor | Rows | None = None

    def __call__(self, x: Tensor) -> None:
        """Add a batch of what the layer reads; an empty one adds nothing."""
        if not x.numel():
            return
        rows = windows(self.layer, x)
        sums, self.count = rows.sum(1).double(), self.count + rows.shape[1]
        self.sums = sums if self.sums is None else self.sums + sums
        self._add(torch.bmm(rows.mT, rows))

    def second_moments(self, *, centred: bool) -> Tensor:
        """[G, K, K]: E[x xᵀ], or the covariance where ``centred``. Raises InputError where nothing was seen."""
        if self._products is None or self.sums is None:
            raise InputError("no value was observed; the calibration set or the tensor is empty")
        products, mean = self._total().div_(self.count), self.sums / self.count
        return products.sub_(mean.unsqueeze(2) * mean.unsqueeze(1)) if centred else products

    def _add(self, products: Tensor) -> None:
        if self.cache is None:
            assert not isinstance(self._products, Rows)
            self._products = products.double() if self._products is None else self._products.add_(products)
            return
        if self._products is None:
            self._products = self.cache.room(products[..., 0].numel(), products.shape[2:], torch.float64)
        assert isinstance(self._products, Rows)
        first = 0
        for part in products.flatten(0, 1).split(max(1, AT_ONCE // products.shape[2])):
            self._products.add(first, part.double())
            first += len(part)

    def _total(self) -> Tensor:
        """A tensor of its own, [G, K, K]."""
        assert self.sums is not None
        if isinstance(self._products, Rows):
            return self._products.read(slice(None)).reshape(*self.sums.shape, -1).to(self.sums.device)
        assert self._products is not None
        return self._products.clone()


class MomentsByName(Mapping[str, Tensor]):
    """Second moments of several layers' inputs, each computed when it is asked for. centred: as second_moments'."""

    def __init__(self, inputs: Mapping[str, InputMoments], *, centred: bool) -> None:
        self._inputs, self._centred = inputs, centred

    def __getitem__(self, name: str) -> Tensor:
        return self._inputs[name].second_moments(centred=self._centred)

    def __contains__(self, name: object) -> bool:
        return name in self._inputs

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __len__(self) -> int:
        return len(self._inputs)

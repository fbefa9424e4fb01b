"""TensorStatistics: what calibration knows of one tensor, streaming and mergeable in batch order.
The sums themselves are an op (ops.tensor_statistics); what is concluded from them is clipping.py's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce

import torch
from torch import Tensor

from pytorch_quantizer import ops
from pytorch_quantizer.errors import InputError


@dataclass(frozen=True)
class TensorStatistics:
    """Moments of one tensor, float64, each [] (per tensor) or [C] (per channel).

    count: values seen. min, max: +inf and −inf where none was. mean: E x. abs_dev: E|x − μ| about the mean of each
    batch, merged by count (ACIQ's way). variance: E (x − μ)². positive_count: values above zero, and over them
    positive_mean = E[x | x > 0], positive_mean_square = E[x² | x > 0].
    """

    count: Tensor
    min: Tensor
    max: Tensor
    mean: Tensor
    abs_dev: Tensor
    variance: Tensor
    positive_count: Tensor
    positive_mean: Tensor
    positive_mean_square: Tensor

    @classmethod
    def from_tensor(cls, x: Tensor, *, axis: int | None = None) -> TensorStatistics:
        """Measure x of any shape, per tensor or per channel along ``axis``, in two reads."""
        return cls(*ops.tensor_statistics(x, axis=axis).unbind(0))

    @classmethod
    def merged(cls, records: Iterable[TensorStatistics]) -> TensorStatistics:
        """Merge in the order given, so that the result repeats to the bit. Raises InputError where there is none."""
        ordered = list(records)
        if not ordered:
            raise InputError("no statistics to merge: the calibration set is empty")
        return reduce(TensorStatistics.merge, ordered)

    def merge(self, other: TensorStatistics) -> TensorStatistics:
        """Both together; count, min and max exactly, the variance by Chan's formula for two groups."""
        count = self.count + other.count
        share = _share(other.count, count)
        delta = other.mean - self.mean
        positive_count = self.positive_count + other.positive_count
        positive_share = _share(other.positive_count, positive_count)
        return TensorStatistics(
            count=count,
            min=torch.minimum(self.min, other.min),
            max=torch.maximum(self.max, other.max),
            mean=self.mean + delta * share,
            abs_dev=torch.lerp(self.abs_dev, other.abs_dev, share),
            variance=torch.lerp(self.variance, other.variance, share) + delta.square() * share * (1 - share),
            positive_count=positive_count,
            positive_mean=torch.lerp(self.positive_mean, other.positive_mean, positive_share),
            positive_mean_square=torch.lerp(self.positive_mean_square, other.positive_mean_square, positive_share),
        )

    def to(self, device: torch.device | str) -> TensorStatistics:
        """The same on another device."""
        return TensorStatistics(*(getattr(self, field.name).to(device) for field in fields(self)))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where whole is 0."""
    return part / whole.clamp(min=1)

"""TensorStatistics: what calibration knows of one tensor, streaming and mergeable in batch order.
The sums themselves are an op (ops.tensor_statistics); what is concluded from them is clipping.py's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer import ops
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.histogram import Histogram

Limits = tuple[float | None, float | None]
UNLIMITED: Limits = (None, None)


@dataclass(frozen=True)
class TensorStatistics:
    """Moments of one tensor, float64, each [] (per tensor) or [C] (per channel).

    count: values seen. min, max: +inf and −inf where none was. mean: E x. abs_dev: E|x − μ| about the mean of each
    batch, merged by count (ACIQ's way). variance: E (x − μ)². positive_count: values above zero, and over them
    positive_mean = E[x | x > 0], positive_mean_square = E[x² | x > 0]. batches: how many that weren't empty were
    merged; min_mean, max_mean: the mean over them of each one's min and max, cut to the limits that they were collected
    under, 0 where there was none. histogram: of the values, where it was asked for. extremes: [batches, 2], min and max
    over all channels of each batch, in order, where ``with_extremes`` was called on each one's record; to look at, so
    no file keeps them.
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
    batches: Tensor
    min_mean: Tensor
    max_mean: Tensor
    histogram: Histogram | None = None
    extremes: Tensor | None = None

    @classmethod
    def from_tensor(
        cls, x: Tensor, *, axis: int | None = None, histogram: bool = False, limits: Limits = UNLIMITED
    ) -> TensorStatistics:
        """Measure x of any shape, per tensor or channel along ``axis``: at most two reads, one more for a histogram.

        limits: what min_mean and max_mean are cut to, where x is read by a ReLU whose output they are to tell of.
        """
        moments = dict(zip(ops.STATISTICS, ops.tensor_statistics(x, axis=axis).unbind(0), strict=True))
        seen, low, high = moments["count"] > 0, moments["min"], moments["max"]
        moments["batches"] = seen.to(torch.float64)
        moments["min_mean"], moments["max_mean"] = (
            torch.where(seen, end if limits == UNLIMITED else end.clamp(*limits), 0.0) for end in (low, high)
        )
        if not histogram:
            return cls(**moments, histogram=None)
        largest = torch.where(seen, torch.maximum(low.abs(), high.abs()), 0.0)
        return cls(**moments, histogram=Histogram.from_tensor(x, axis=axis, largest=largest))

    def with_extremes(self) -> TensorStatistics:
        """The record of one batch with its min and max as ``extremes``, which merging keeps apart."""
        extremes = torch.stack([self.min.reshape(-1).amin(), self.max.reshape(-1).amax()])[None]
        return replace(self, extremes=extremes)

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
        batches = self.batches + other.batches
        batch_share = _share(other.batches, batches)
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
            batches=batches,
            min_mean=torch.lerp(self.min_mean, other.min_mean, batch_share),
            max_mean=torch.lerp(self.max_mean, other.max_mean, batch_share),
            histogram=self._merged_histogram(other),
            extremes=self._joined_extremes(other),
        )

    def _merged_histogram(self, other: TensorStatistics) -> Histogram | None:
        """Both histograms together; None where one is missing, as half a histogram would mislead."""
        if self.histogram is None or other.histogram is None:
            return None
        return self.histogram.merge(other.histogram)

    def _joined_extremes(self, other: TensorStatistics) -> Tensor | None:
        """Those of both, one behind the other; None where one is missing."""
        if self.extremes is None or other.extremes is None:
            return None
        return torch.cat([self.extremes, other.extremes])

    def to(self, device: torch.device | str) -> TensorStatistics:
        """The same on another device."""
        parts: dict[str, Any] = {name: getattr(self, name) for name in (*MOMENTS, "histogram", "extremes")}
        moved: dict[str, Any] = {name: None if part is None else part.to(device) for name, part in parts.items()}
        return TensorStatistics(**moved)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers that strict JSON holds, a list where there are channels; infinite and NaN values are text.

        float64 survives exactly. The histogram is Histogram.to_dict's, None where there is none.
        """
        moments = {name: _plain(getattr(self, name).tolist()) for name in MOMENTS}
        return {**moments, "histogram": None if self.histogram is None else self.histogram.to_dict()}

    @classmethod
    def from_dict(cls, values: Any) -> TensorStatistics:
        """What ``to_dict`` wrote, on the CPU. Raises InputError that names the field which doesn't fit."""
        known = [*MOMENTS, "histogram"]
        if not isinstance(values, dict) or sorted(values) != sorted(known):
            raise InputError(f"tensor statistics must hold {', '.join(known)}; {_difference(values, known)}")
        moments = {name: _number(name, values[name]) for name in MOMENTS}
        shape = moments["count"].shape
        for name, value in moments.items():
            if value.shape != shape:
                raise InputError(f"{name} must have the shape of count, {list(shape)}, got {list(value.shape)}")
        for name in NEVER_NEGATIVE:
            if bool(torch.any(moments[name] < 0)):
                raise InputError(f"{name} must not be negative, got {moments[name].min().item()}")
        return cls(**moments, histogram=_histogram(values["histogram"], shape))


MOMENTS = tuple(field.name for field in fields(TensorStatistics) if field.name not in ("histogram", "extremes"))
NEVER_NEGATIVE = ("count", "abs_dev", "variance", "positive_count", "positive_mean", "positive_mean_square", "batches")


def check_observed(statistics: TensorStatistics) -> TensorStatistics:
    """The statistics. Raises InputError where a channel saw no value, and for NaN or infinite ones."""
    if bool(torch.any(statistics.count == 0)):
        raise InputError("no value was observed; the calibration set or the tensor is empty")
    if not bool(torch.all(torch.isfinite(statistics.min) & torch.isfinite(statistics.max))):
        raise InputError("it holds NaN or infinite values")
    return statistics


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 where whole is 0."""
    return part / whole.clamp(min=1)


def _plain(value: Any) -> Any:
    """Numbers as they are, but inf, -inf and nan as text, which JSON has no number for."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value if math.isfinite(value) else str(value)


def _number(name: str, value: Any) -> Tensor:
    """A number [] or a list of numbers [C] as float64; text may stand for inf, -inf and nan."""
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, bool) or not (isinstance(entry, int | float) or entry in ("inf", "-inf", "nan")):
            raise InputError(f"{name} must be a number, or a list of numbers a channel, got {entry!r}")
    try:
        numbers = [float(entry) for entry in value] if isinstance(value, list) else float(value)
    except OverflowError as error:
        raise InputError(f"{name} must be a number that float64 holds, got one of more than 300 digits") from error
    return torch.tensor(numbers, dtype=torch.float64)


def _difference(values: Any, known: list[str]) -> str:
    if not isinstance(values, dict):
        return f"got {type(values).__name__}"
    missing = [name for name in known if name not in values]
    unknown = [str(name) for name in values if name not in known]
    return f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"


def _histogram(value: Any, shape: torch.Size) -> Histogram | None:
    """Raises InputError where it has other channels than the moments."""
    if value is None:
        return None
    histogram = Histogram.from_dict(value)
    if histogram.zeros.shape != shape:
        raise InputError(f"histogram must have the shape of count, {list(shape)}, got {list(histogram.zeros.shape)}")
    return histogram

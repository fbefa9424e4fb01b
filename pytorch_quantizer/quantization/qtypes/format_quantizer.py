"""FormatQuantizer: what all number types beside the uniform affine grids share: settings, forward, gradient, storage.
Which values a type has, and how it is fitted, is the business of the types' own files.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.clipping import (
    ANY_VALUES,
    Domain,
    check_across_batches,
    check_clipping,
    needs_histogram,
)
from pytorch_quantizer.quantization.qtypes.quantizer import UNFITTED, Quantizer
from pytorch_quantizer.quantization.statistics import TensorStatistics


class FormatQuantizer(Quantizer):
    """A number type that brings its own levels.

    bits: one of ``widths``. axis: the dimension whose slices have levels of their own, None for one set. clip: one of
    ``clippings`` (a part before a colon counts); across_batches: as for clipping.choose_range. domain: what is known of
    the values; where none is negative, types that can leave out the negative levels do. rounding: to the nearest level,
    so "half_even" alone is accepted; where a tie goes is the type's to say. signed, narrow, symmetric and seed, which
    uniform grids need, change nothing here. Raises InputError for what the type hasn't got.

    A subclass lists in ``stored`` the buffers that ``fit`` fills and files hold, and has ``_simulate``, ``quantize``,
    ``dequantize``, ``range`` and ``_fit``.
    """

    stored: ClassVar[tuple[str, ...]] = ()
    stored_dims: ClassVar[int] = 0  # of a channel's entry
    clippings: ClassVar[tuple[str, ...]] = ("minmax",)
    why_clippings: ClassVar[str] = "its scale has a rule of its own"
    scale: Any  # a buffer where it is stored, else None

    def __init__(
        self,
        bits: int | None = None,
        *,
        signed: bool = True,
        narrow: bool = False,
        symmetric: bool = True,
        axis: int | None = None,
        clip: str = "minmax",
        domain: Domain = ANY_VALUES,
        across_batches: str = "max",
        rounding: str = "half_even",
        seed: int = 0,
    ) -> None:
        super().__init__()
        bits = self.fixed_bits if bits is None else bits
        if bits is None or bits not in self.widths:
            raise InputError(f"bits of {self.family()} must be {width_rule(self.widths)}, got {bits}")
        if rounding != "half_even":
            raise InputError(f"rounding of {self.family()} must be half_even (to the nearest), got {rounding!r}")
        if check_clipping(clip).partition(":")[0] not in self.clippings:
            allowed = " or ".join(self.clippings)
            raise InputError(f"clip of {self.family()} must be {allowed} ({self.why_clippings}), got {clip!r}")
        self.bits, self.axis, self.clip, self.domain = bits, axis, clip, domain
        self.across_batches = check_across_batches(across_batches)
        if "scale" not in self.stored:
            self.scale = None
        for name in self.stored:
            self.register_buffer(name, None)

    @property
    def needs_histogram(self) -> bool:
        """Whether statistics to ``fit`` to must hold a histogram: where the clipping is read or sought in one."""
        return needs_histogram(self.clip)

    @classmethod
    def family(cls) -> str:
        """The type's name in errors."""
        return cls.__name__.removesuffix("Quantizer").lower()

    def fit(self, source: Tensor | TensorStatistics) -> Self:
        """Fit to a tensor, or to statistics as the clipping allows.

        Raises InputError where nothing was observed, for NaN and infinite values, and where the statistics lack a
        histogram that the type needs.
        """
        if isinstance(source, Tensor):
            source = source.detach()
            self._fit(
                TensorStatistics.from_tensor(source, axis=self.axis, histogram=needs_histogram(self.clip)), source
            )
        else:
            self._fit(source, None)
        return self

    @abstractmethod
    def _fit(self, statistics: TensorStatistics, x: Tensor | None) -> None:
        """Fill the stored buffers from the statistics, or from x itself where there is one."""

    @abstractmethod
    def _simulate(self, x: Tensor) -> Tensor:
        """The level nearest to each value of a float32 tensor; NaN stays NaN."""

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Simulate, computed in float32 and rounded to x's dtype once; x's layout.

        The gradient goes straight through inside ``range()`` and is 0 outside. ``inplace`` overwrites x if no gradient
        is needed.
        """
        self._check_fitted()
        if x.requires_grad and torch.is_grad_enabled():
            out: Tensor = _StraightThrough.apply(x, *(self._along(bound, x) for bound in self.range()), self)
            return out
        y = self._simulate(x.detach().float())
        return (x if inplace else torch.empty_like(x)).copy_(y)

    def storage(self) -> dict[str, Tensor]:
        """The buffers that ``fit`` filled."""
        self._check_fitted()
        return {name: getattr(self, name) for name in self.stored}

    def restore(self, storage: dict[str, Tensor]) -> Self:
        """Take the buffers back. Raises InputError where one is missing, not float32, or not one for each channel."""
        dims = self.stored_dims + (self.axis is not None)
        for name in self.stored:
            if name not in storage:
                raise InputError(
                    f"the storage of {self.describe()} must hold {', '.join(self.stored)}; no {name} there"
                )
            if storage[name].dtype != torch.float32 or storage[name].dim() != dims:
                got = f"{storage[name].dtype} {list(storage[name].shape)}"
                raise InputError(
                    f"{name} of {self.describe()}, axis={self.axis}, must be float32 of {dims} dimensions, got {got}"
                )
        for name in self.stored:
            setattr(self, name, storage[name])
        return self

    def describe(self) -> str:
        """kmeans4, ternary: the number type as recipes write it."""
        return self.family() if self.fixed_bits else f"{self.family()}{self.bits}"

    def extra_repr(self) -> str:
        """What print shows."""
        granularity = "per-tensor" if self.axis is None else f"per-channel axis={self.axis}"
        return f"{self.describe()}, {granularity}, clip={self.clip}"

    def _check_fitted(self) -> None:
        if any(getattr(self, name) is None for name in self.stored):
            raise InputError(UNFITTED)

    def _rows(self, x: Tensor) -> Tensor:
        """The values that share levels, a row each: [C, n], [1, n] per tensor; contiguous."""
        return (x.reshape(1, -1) if self.axis is None else x.movedim(self.axis, 0).flatten(1)).contiguous()

    def _from_rows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """What ``_rows`` made of a tensor of this shape, back in that shape."""
        if self.axis is None:
            return rows.reshape(shape)
        moved = torch.Size([shape[self.axis], *(n for d, n in enumerate(shape) if d != self.axis % len(shape))])
        return rows.reshape(moved).movedim(0, self.axis)

    def _per_channel(self, values: Tensor) -> Tensor:
        """values [C, …], a row's result each, as they are stored: without the first dimension per tensor."""
        return values[0] if self.axis is None else values

    def _along(self, values: Tensor, x: Tensor) -> Tensor:
        """values [] or [C], shaped to broadcast along x's channels."""
        if self.axis is None or values.dim() == 0:
            return values
        shape = [1] * x.dim()
        shape[self.axis] = -1
        return values.reshape(shape)


class _StraightThrough(torch.autograd.Function):
    """forward: the quantizer's; backward: identity inside [low, high]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor, quantizer: FormatQuantizer) -> Tensor:
        ctx.save_for_backward(x, low, high)
        return torch.empty_like(x).copy_(quantizer._simulate(x.detach().float()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, low, high = ctx.saved_tensors
        return gradients[0] * ((x >= low) & (x <= high)), None, None, None


def width_rule(widths: range) -> str:
    """Which bits a type has, in words: "8" or "between 1 and 8"."""
    return str(widths[0]) if len(widths) == 1 else f"between {widths[0]} and {widths[-1]}"

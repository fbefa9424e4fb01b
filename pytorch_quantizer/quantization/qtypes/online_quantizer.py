"""OnlineQuantizer: an integer grid laid anew over each batch, instead of one that calibration chose.
The ranges are clipping.py's, the arithmetic IntQuantizer's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from pytorch_quantizer import ops
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.clipping import Domain, Support, analytic_reach, choose_range
from pytorch_quantizer.quantization.qparams import GridSpec, QParams
from pytorch_quantizer.quantization.qtypes.int_quantizer import IntQuantizer
from pytorch_quantizer.quantization.statistics import TensorStatistics

UNSEEN = "an online quantizer has no grid before its first batch; run the model on one first"


class OnlineQuantizer(IntQuantizer):
    """An IntQuantizer that each forward fits to the batch it is given, as the ACIQ code does by default.

    settings: an IntQuantizer, fitted or not, whose settings are taken over; its grid is not. There is nothing to
    calibrate and nothing to store. The grid differs from batch to batch, so no integer kernel runs it and biases,
    which would need a fixed scale, stay in float. qparams, range, quantize and dequantize are of the last batch's grid.
    """

    is_integer = False
    takes_addition = False

    def __init__(self, settings: IntQuantizer) -> None:
        super().__init__(
            settings.bits,
            signed=settings.signed,
            narrow=settings.narrow,
            symmetric=settings.symmetric,
            axis=settings.axis,
            clip=settings.clip,
            domain=settings.domain,
            rounding=settings.rounding,
            seed=settings.seed,
            across_batches=settings.across_batches,
        )
        kinds: set[Support] = {self.domain.support, "nonnegative"}
        self._rules = {support: analytic_reach(self.clip, self.bits, support) for support in kinds}
        self.register_buffer("scale", None, persistent=False)
        self.register_buffer("zero_point", None, persistent=False)

    @property
    def needs_statistics(self) -> bool:
        """Never: a batch's own statistics decide."""
        return False

    @property
    def qparams(self) -> QParams:
        """The last batch's grid. Raises InputError before the first."""
        if self.scale is None:
            raise InputError(UNSEEN)
        return super().qparams

    @qparams.setter
    def qparams(self, qparams: QParams) -> None:
        self.scale, self.zero_point = qparams.scale, qparams.zero_point

    def fit(self, source: Tensor | TensorStatistics) -> Self:
        """Learn nothing, and return self."""
        return self

    def forward(  # type: ignore[override]
        self, x: Tensor, observed: Tensor | None = None, inplace: bool = False, relu: bool = False
    ) -> Tensor:
        """Simulate x, or relu(x), on the grid of its own batch.

        observed: the tensor whose statistics choose the range, where it isn't x: a ReLU's input, for a rectified
        domain. Without it and without ``relu`` such a domain is taken as non-negative, for x no longer tells what the
        ReLU cut off. inplace: overwrites x if no gradient is needed. Raises InputError for an empty batch, and for NaN
        or infinite values; on a GPU and when compiled, where asking would mean to wait, these give NaN, and an empty
        batch nothing.
        """
        if not isinstance(x, Tensor):
            raise InputError(
                f"{type(x).__name__} has no one range; quantized layers read tensors, padded sequences too"
            )
        domain = self.domain
        if observed is None and not relu and domain.support == "rectified":
            domain = replace(domain, support="nonnegative")
        if observed is None and not (x.requires_grad and torch.is_grad_enabled()):
            y = self._in_one_call(x, domain, inplace, relu)
            if y is not None:
                return y
        source = x if observed is None else observed
        statistics = TensorStatistics.from_tensor(source.detach(), axis=self.axis, histogram=self.needs_histogram)
        grid = GridSpec(self.bits, self.signed, self.symmetric, self.narrow)
        lo, hi = choose_range(statistics, method=self.clip, grid=grid, domain=domain)
        self.qparams = grid.over(lo, hi, self.axis)
        return super().forward(x, inplace, relu=relu)

    def _in_one_call(self, x: Tensor, domain: Domain, inplace: bool, relu: bool) -> Tensor | None:
        """The same by one op; None where the range isn't one that it knows, or x holds what must be refused."""
        rule = self._rules[domain.support]
        if rule is None or (self.symmetric and not self.signed) or not x.numel():
            return None
        spread, reach = rule
        ceiling = float("inf") if domain.upper is None else domain.upper
        kind: Any = {"spread": spread, "reach": reach, "support": domain.support, "ceiling": ceiling, "relu": relu}
        y, scale, zero_point = ops.online_fake_quantize(
            x,
            self.qmin,
            self.qmax,
            symmetric=self.symmetric,
            axis=self.axis,
            out=x if inplace else None,
            **kind,
            **self._rounding(x),
        )
        waits = scale.device.type != "cpu" or torch.compiler.is_compiling()
        if not waits and not bool(scale.isfinite().all()):
            return None
        self.scale, self.zero_point = scale, zero_point
        return y

    def storage(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, storage: dict[str, Tensor]) -> Self:
        """Nothing to take back; returns self."""
        return self

    def describe(self) -> str:
        """uint4 online."""
        return f"{super().describe()} online"

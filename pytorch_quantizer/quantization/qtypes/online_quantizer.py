"""OnlineQuantizer: an integer grid laid anew over each batch, instead of one that calibration chose.
The ranges are clipping.py's, the arithmetic IntQuantizer's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from torch import Tensor

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.clipping import choose_range
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
    takes_relu_and_addition = False

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

    def forward(self, x: Tensor, observed: Tensor | None = None, inplace: bool = False) -> Tensor:  # type: ignore[override]
        """Simulate x on the grid of its own batch.

        observed: the tensor whose statistics choose the range, where it isn't x: a ReLU's input, for a rectified
        domain. Without it such a domain is taken as non-negative, for x no longer tells what the ReLU cut off.
        inplace: overwrites x if no gradient is needed. Raises InputError for an empty batch, and for NaN or infinite
        values.
        """
        source = x if observed is None else observed
        statistics = TensorStatistics.from_tensor(source.detach(), axis=self.axis, histogram=self.needs_histogram)
        domain = self.domain
        if observed is None and domain.support == "rectified":
            domain = replace(domain, support="nonnegative")
        grid = GridSpec(self.bits, self.signed, self.symmetric, self.narrow)
        lo, hi = choose_range(statistics, method=self.clip, grid=grid, domain=domain)
        self.qparams = grid.over(lo, hi, self.axis)
        return super().forward(x, inplace)

    def storage(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, storage: dict[str, Tensor]) -> Self:
        """Nothing to take back; returns self."""
        return self

    def describe(self) -> str:
        """uint4 online."""
        return f"{super().describe()} online"

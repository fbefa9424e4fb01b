"""Rounding weights so that the errors of one input's weights are made good by the next ones' (OBQ, GPTQ).
What a layer reads is measured, and its weight replaced, in calibration/second_order.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError

BLOCK = 128  # columns between two updates of all that are behind them
ROWS_AT_ONCE = 4096  # of all candidates for a grid that are rounded together
SHARES = (1.0, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.05, 1.1)  # of a grid's scale that a search tries


class RowGrid(NamedTuple):
    """The grid of each row of weights: y = (q − zero_point)·scale, q whole in [qmin, qmax]; both tensors [G, R]."""

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int

    def nearest(self, values: Tensor) -> Tensor:
        """The nearest level of each row's value, [G, R], or values, [G, R, K]; half to even."""
        scale, zero = (part if values.dim() == 2 else part.unsqueeze(2) for part in (self.scale, self.zero_point))
        return ((torch.round(values / scale) + zero).clamp(self.qmin, self.qmax) - zero) * scale

    def times(self, share: float | Tensor) -> RowGrid:
        """The same codes with other scales."""
        return self._replace(scale=self.scale * share)


def quadratic_error(weight: Tensor, rounded: Tensor, moments: Tensor) -> Tensor:
    """[G, R]: e M eᵀ of each row's error e = rounded − weight, [G, R, K] each; moments: M, [G, K, K]."""
    error = rounded - weight
    return (torch.bmm(error, moments) * error).sum(2)


def least_squares_target(weight: Tensor, moments: Tensor, cross: Tensor, *, damping: float) -> Tensor:
    """[G, R, K]: real weights T that make of the quantized inputs x what ``weight`` makes of the float ones f.

    Least in E‖W f − T x‖² + λ‖T − W‖²: T = (W C + λ W)(M + λ I)⁻¹. moments: M = E[x xᵀ]; cross: C = E[f xᵀ], both
    [G, K, K], or the covariances where the bias mends the mean; λ = damping times the mean of M's diagonal.
    """
    ridge = _ridge(moments, damping)
    factor = _cholesky(moments + torch.diag_embed(ridge))
    wanted = torch.bmm(weight, cross) + weight * ridge.unsqueeze(1)
    return torch.cholesky_solve(wanted.mT, factor).mT


def second_order_round(
    weight: Tensor, moments: Tensor, grid: RowGrid, *, damping: float = 0.01, sweeps: int = 0, by_size: bool = False
) -> Tensor:
    """[G, R, K]: the weights on their grids so that e M eᵀ of each row is small, and never above nearest rounding's.

    weight: [G, R, K], R outputs of each of G groups, of K inputs; moments: [G, K, K], E[x xᵀ] of these inputs, or their
    covariance; float64. H = 2·M + λ·I with λ = damping times the mean of 2·M's diagonal. In one pass over the columns
    each is rounded to the nearest level, and the columns behind it take over its error as far as the inputs are
    correlated: w_j ← w_j − (w_i − q_i)·U_ij/U_ii, H⁻¹ = Uᵀ U (Frantar et al. 2022, GPTQ, eq. 2 and 3; Cholesky form).
    by_size: columns in the order of falling E[x²], else as they are. sweeps: afterwards each weight in turn takes the
    level that is best with all others as they are, as often. A row that nearest rounding serves as well keeps that.
    Raises InputError for moments that aren't finite.
    """
    return _Columns(weight, moments, damping, by_size).rounded(grid, sweeps)


def search_scales(
    weight: Tensor,
    moments: Tensor,
    grid: RowGrid,
    tied: Sequence[int],
    *,
    damping: float = 0.01,
    sweeps: int = 0,
    by_size: bool = False,
) -> tuple[Tensor, RowGrid]:
    """(the weights [G, R, K] as second_order_round rounds them, their grid): each scale times the best of SHARES.

    A scale is judged by what the pass over the columns makes with it, not by nearest rounding. tied: of the dimensions
    G and R, those along which all have one scale, which their sum of errors decides.
    """
    columns = _Columns(weight, moments, damping, by_size)
    at_once = max(1, ROWS_AT_ONCE // weight.shape[1])
    errors = [columns.errors(grid, SHARES[start : start + at_once]) for start in range(0, len(SHARES), at_once)]
    error = torch.cat(errors, 1)  # [G, S, R]
    if tied:
        error = error.sum([dim if dim == 0 else 2 for dim in tied], keepdim=True).expand_as(error)
    best = torch.tensor(SHARES, dtype=weight.dtype, device=weight.device)[error.argmin(1)]
    chosen = grid.times(best)
    return columns.rounded(chosen, sweeps), chosen


class _Columns:
    """Weights and moments with their columns in the order of rounding, and the factor that feeds errors forward."""

    def __init__(self, weight: Tensor, moments: Tensor, damping: float, by_size: bool) -> None:
        if not bool(torch.isfinite(moments).all()) or not bool(torch.isfinite(weight).all()):
            raise InputError("second-order rounding needs finite weights and inputs; there are NaN or infinite ones")
        self.order = _order(moments, by_size)
        self.weight = weight.gather(2, self.order.unsqueeze(1).expand_as(weight))
        rows = moments.gather(1, self.order.unsqueeze(2).expand_as(moments))
        self.moments = rows.gather(2, self.order.unsqueeze(1).expand_as(moments))
        self.factor = _inverse_factor(2 * self.moments + torch.diag_embed(_ridge(2 * self.moments, damping)))

    def rounded(self, grid: RowGrid, sweeps: int) -> Tensor:
        """[G, R, K], the columns as they were given."""
        found = self._no_worse_than_nearest(self.weight, grid)
        for _ in range(sweeps):
            found = _swept(self.weight, found, self.moments, grid)
        return torch.empty_like(found).scatter_(2, self.order.unsqueeze(1).expand_as(found), found)

    def errors(self, grid: RowGrid, shares: Sequence[float]) -> Tensor:
        """[G, S, R]: each row's error with its scale times each share."""
        groups, rows, _ = self.weight.shape
        tiled = self.weight.repeat(1, len(shares), 1)
        scale = torch.cat([grid.scale * share for share in shares], 1)
        grids = grid._replace(scale=scale, zero_point=grid.zero_point.repeat(1, len(shares)))
        found = self._no_worse_than_nearest(tiled, grids)
        return quadratic_error(tiled, found, self.moments).reshape(groups, len(shares), rows)

    def _no_worse_than_nearest(self, weight: Tensor, grid: RowGrid) -> Tensor:
        found, nearest = _one_pass(weight, self.factor, grid), grid.nearest(weight)
        errors = [quadratic_error(weight, candidate, self.moments) for candidate in (found, nearest)]
        return torch.where((errors[0] < errors[1]).unsqueeze(2), found, nearest)


def _order(moments: Tensor, by_size: bool) -> Tensor:
    """[G, K]: the columns as they are to be rounded."""
    diagonal = moments.diagonal(dim1=1, dim2=2)
    if by_size:
        return diagonal.argsort(dim=1, descending=True, stable=True)
    return torch.arange(moments.shape[1], device=moments.device).expand_as(diagonal)


def _ridge(matrix: Tensor, damping: float) -> Tensor:
    """[G, K]: damping times the mean of the diagonal; of an empty matrix damping itself."""
    mean = matrix.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    return (damping * torch.where(mean > 0, mean, 1.0)).expand(-1, matrix.shape[1])


def _cholesky(matrix: Tensor) -> Tensor:
    lower, info = torch.linalg.cholesky_ex(matrix)
    if bool(info.any()):
        raise InputError("second-order rounding: the inputs' second moments are singular; give a larger damping")
    return lower


def _inverse_factor(hessian: Tensor) -> Tensor:
    """U, upper triangular, with H⁻¹ = Uᵀ U: of the Cholesky factor of H read backwards, R Rᵀ = H, U = R⁻¹."""
    upper = _cholesky(hessian.flip(1, 2)).flip(1, 2)
    eye = torch.eye(upper.shape[1], dtype=upper.dtype, device=upper.device).expand_as(upper)
    return torch.linalg.solve_triangular(upper, eye, upper=True)


def _one_pass(weight: Tensor, factor: Tensor, grid: RowGrid) -> Tensor:
    """Column after column to its nearest level; what is behind takes over the error, at once inside a block."""
    left, rounded = weight.clone(), torch.empty_like(weight)
    for start in range(0, weight.shape[2], BLOCK):
        block = slice(start, min(start + BLOCK, weight.shape[2]))
        inside, within = left[:, :, block].clone(), factor[:, block, block]
        errors = torch.empty_like(inside)
        for column in range(inside.shape[2]):
            level = grid.nearest(inside[:, :, column])
            errors[:, :, column] = (inside[:, :, column] - level) / within[:, column, column].unsqueeze(1)
            inside[:, :, column:] -= errors[:, :, column, None] * within[:, column, None, column:]
            rounded[:, :, start + column] = level
        left[:, :, block.stop :] -= torch.bmm(errors, factor[:, block, block.stop :])
    return rounded


def _swept(weight: Tensor, rounded: Tensor, moments: Tensor, grid: RowGrid) -> Tensor:
    """Each weight in turn at the level that is best with the others as they are: never a larger error."""
    rounded, slope = rounded.clone(), torch.bmm(rounded - weight, moments)
    for start in range(0, weight.shape[2], BLOCK):
        block = slice(start, min(start + BLOCK, weight.shape[2]))
        inside, within, before = slope[:, :, block].clone(), moments[:, block, block], rounded[:, :, block].clone()
        for column in range(inside.shape[2]):
            old, size = before[:, :, column], within[:, column, column].unsqueeze(1)
            new = torch.where(size > 0, grid.nearest(old - inside[:, :, column] / size), old)
            inside += (new - old).unsqueeze(2) * within[:, column].unsqueeze(1)
            rounded[:, :, start + column] = new
        slope += torch.bmm(rounded[:, :, block] - before, moments[:, block])
    return rounded

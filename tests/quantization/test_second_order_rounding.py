"""Second-order rounding: what OBQ says to the letter, never worse than nearest, and what degenerate inputs become."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_quantizer import InputError
from pytorch_quantizer.quantization.qparams import grid_limits
from pytorch_quantizer.quantization.second_order_rounding import (
    BLOCK,
    SHARES,
    RowGrid,
    least_squares_target,
    quadratic_error,
    search_scales,
    second_order_round,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments_of(groups, inputs, *, seed=1, rank=None):
    """Of correlated inputs, as those of a convolution are."""
    x = drawn(groups, 4 * inputs, rank or inputs, seed=seed) @ drawn(groups, rank or inputs, inputs, seed=seed + 1)
    return x.mT @ x / x.shape[1]


def grid_of(weight, bits, *, affine=False):
    largest = weight.abs().amax(2)
    qmin, qmax = grid_limits(bits, signed=True, narrow=bits > 1 and not affine)
    zero = torch.full_like(largest, 1.0 if affine else 0.0)
    return RowGrid(largest / max(qmax, 1), zero, qmin, qmax)


def naive_obq(weight, moments, grid, damping):
    """Optimal brain quantization of one row in the given order: after each weight the inverse of what is left of H."""
    hessian = 2 * moments + damping * (2 * moments).diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    left, rounded = weight.clone(), torch.empty_like(weight)
    for column in range(len(weight)):
        inverse = torch.linalg.inv(hessian[column:, column:])
        scale, zero, qmin, qmax = grid
        rounded[column] = (torch.clamp(torch.round(left[column] / scale) + zero, qmin, qmax) - zero) * scale
        left[column:] -= (left[column] - rounded[column]) / inverse[0, 0] * inverse[0]
    return rounded


class TestAgainstOBQ:
    @pytest.mark.parametrize("affine", [False, True])
    @pytest.mark.parametrize("bits", [2, 3, 4])
    def test_each_row_is_what_obq_makes_of_it(self, bits, affine):
        weight, moments = drawn(2, 5, 12), moments_of(2, 12)
        grid = grid_of(weight, bits, affine=affine)
        found = second_order_round(weight, moments, grid, damping=0.05)
        nearest = grid.nearest(weight)
        for group in range(2):
            for row in range(5):
                own = (grid.scale[group, row], grid.zero_point[group, row], grid.qmin, grid.qmax)
                expected = naive_obq(weight[group, row], moments[group], own, 0.05)
                errors = [
                    float((candidate - weight[group, row]) @ moments[group] @ (candidate - weight[group, row]))
                    for candidate in (expected, nearest[group, row])
                ]
                wanted = expected if errors[0] < errors[1] else nearest[group, row]
                assert torch.allclose(found[group, row], wanted, rtol=0, atol=1e-9)

    def test_blocks_make_no_difference(self):
        """More columns than two blocks: what OBQ makes of them with no blocks at all."""
        inputs = 2 * BLOCK + 7
        weight, moments = drawn(1, 1, inputs), moments_of(1, inputs)
        grid = grid_of(weight, 3)
        own = (grid.scale[0, 0], grid.zero_point[0, 0], grid.qmin, grid.qmax)
        expected = naive_obq(weight[0, 0], moments[0], own, 0.01)
        assert torch.allclose(second_order_round(weight, moments, grid)[0, 0], expected, rtol=0, atol=1e-9)

    def test_by_size_takes_the_columns_of_the_largest_inputs_first(self):
        weight, moments = drawn(1, 4, 10), moments_of(1, 10)
        moments = moments * (10.0 ** drawn(10)).outer(10.0 ** drawn(10))
        order = moments[0].diagonal().argsort(descending=True)
        assert not torch.equal(order, torch.arange(10))
        grid = grid_of(weight, 3)
        sorted_ = second_order_round(weight[:, :, order], moments[:, order][:, :, order], grid)
        found = second_order_round(weight, moments, grid, by_size=True)
        assert torch.equal(found[:, :, order], sorted_)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([1, 2, 3, 4, 8, 16]),
    seed=st.integers(0, 10**6),
    rank=st.sampled_from([1, 3, 9]),
    damping=st.sampled_from([1e-4, 0.01, 1.0]),
    sweeps=st.integers(0, 2),
    by_size=st.booleans(),
)
def test_never_worse_than_nearest_and_on_the_grid(bits, seed, rank, damping, sweeps, by_size):
    weight, moments = drawn(3, 4, 9, seed=seed), moments_of(3, 9, seed=seed, rank=rank)
    grid = grid_of(weight, bits, affine=bits == 1)
    found = second_order_round(weight, moments, grid, damping=damping, sweeps=sweeps, by_size=by_size)
    before, after = (quadratic_error(weight, w, moments) for w in (grid.nearest(weight), found))
    assert (after <= before * (1 + 1e-9) + 1e-12).all()
    assert torch.equal(grid.nearest(found), found)


def test_correlated_inputs_are_made_good_and_a_sweep_mends_more():
    weight, moments = drawn(1, 32, 48), moments_of(1, 48)
    grid = grid_of(weight, 3)
    rounded = [grid.nearest(weight), *(second_order_round(weight, moments, grid, sweeps=n) for n in (0, 3))]
    errors = [quadratic_error(weight, w, moments).sum() for w in rounded]
    assert errors[1] < 0.5 * errors[0]
    assert errors[2] < 0.95 * errors[1]


@pytest.mark.parametrize("inputs", [12, BLOCK + 5])
def test_sweeps_end_where_no_single_weight_can_do_better(inputs):
    weight, moments = drawn(1, 3, inputs), moments_of(1, inputs)
    grid = grid_of(weight, 3)
    found = second_order_round(weight, moments, grid, sweeps=30)
    least = quadratic_error(weight, found, moments)
    levels = torch.arange(grid.qmin, grid.qmax + 1, dtype=weight.dtype)
    for column in range(inputs):
        for level in levels:
            other = found.clone()
            other[:, :, column] = level * grid.scale
            assert (quadratic_error(weight, other, moments) >= least * (1 - 1e-9)).all()


def test_a_sweep_takes_one_weight_after_the_other_across_blocks_too():
    inputs = BLOCK + 60
    weight, moments = drawn(1, 2, inputs), moments_of(1, inputs)
    grid = grid_of(weight, 3)
    expected = second_order_round(weight, moments, grid)
    for column in range(inputs):
        error = expected - weight
        slope = (error @ moments)[:, :, column]
        expected[:, :, column] = grid.nearest(expected[:, :, column] - slope / moments[:, column, column])
    found = second_order_round(weight, moments, grid, sweeps=1)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


class TestScales:
    @pytest.mark.parametrize("tied", [(), (0,), (0, 1)], ids=["a row", "groups alike", "a tensor"])
    def test_each_is_the_best_of_those_that_are_tried(self, tied):
        weight, moments = drawn(2, 6, 15), moments_of(2, 15)
        grid = grid_of(weight, 3)
        if tied == (0, 1):
            grid = grid._replace(scale=grid.scale.max().expand_as(grid.scale))
        found, chosen = search_scales(weight, moments, grid, tied)
        candidates = torch.stack([second_order_round(weight, moments, grid.times(share)) for share in SHARES])
        errors = torch.stack([quadratic_error(weight, candidate, moments) for candidate in candidates])
        together = errors.sum([dim + 1 for dim in tied], keepdim=True).expand_as(errors) if tied else errors
        best = together.argmin(0)
        shares = torch.tensor(SHARES, dtype=weight.dtype)[best]
        assert torch.equal(chosen.scale, grid.scale * shares)
        assert len(shares.unique()) > 1 or tied
        expected = candidates.gather(0, best[None, :, :, None].expand(1, *weight.shape))[0]
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)

    def test_many_rows_are_searched_in_parts_of_the_ladder(self):
        weight, moments = drawn(1, 3000, 3), moments_of(1, 3)
        grid = grid_of(weight, 2)
        found, chosen = search_scales(weight, moments, grid, ())
        some = torch.arange(0, 3000, 500)
        own = RowGrid(grid.scale[:, some], grid.zero_point[:, some], grid.qmin, grid.qmax)
        alone = search_scales(weight[:, some], moments, own, ())
        assert torch.equal(found[:, some], alone[0])
        assert torch.equal(chosen.scale[:, some], alone[1].scale)

    def test_of_two_bits_a_finer_grid_is_better_than_that_of_the_largest_weight(self):
        weight, moments = drawn(1, 16, 40), moments_of(1, 40)
        grid = grid_of(weight, 2)
        found, chosen = search_scales(weight, moments, grid, ())
        plain = second_order_round(weight, moments, grid)
        assert (chosen.scale < grid.scale).any()
        errors = [quadratic_error(weight, candidate, moments) for candidate in (found, plain)]
        assert (errors[0] <= errors[1]).all()
        assert errors[0].sum() < 0.7 * errors[1].sum()


class TestLeastSquaresTarget:
    def inputs(self):
        """Float inputs, and the same with noise that depends on them."""
        floats = drawn(2, 400, 7, seed=3) @ drawn(2, 7, 7, seed=4)
        return floats, floats + 0.3 * floats.roll(1, 2).abs() + 0.1 * drawn(2, 400, 7, seed=5)

    def test_is_the_minimum(self):
        floats, quantized = self.inputs()
        weight = drawn(2, 3, 7)
        moments, cross = quantized.mT @ quantized / 400, floats.mT @ quantized / 400
        ridge = 0.05 * moments.diagonal(dim1=1, dim2=2).mean(1)
        target = least_squares_target(weight, moments, cross, damping=0.05).requires_grad_()
        missed = (weight @ floats.mT - target @ quantized.mT).square().sum((1, 2)) / 400
        loss = (missed + ridge * (target - weight).square().sum((1, 2))).sum()
        assert torch.allclose(torch.autograd.grad(loss, target)[0], torch.zeros_like(weight), atol=1e-9)

    def test_of_inputs_that_are_not_quantized_it_is_the_weight(self):
        floats, _ = self.inputs()
        weight, moments = drawn(2, 3, 7), floats.mT @ floats / 400
        assert torch.allclose(least_squares_target(weight, moments, moments, damping=0.01), weight, atol=1e-9)

    def test_without_inputs_it_is_the_weight(self):
        weight, nothing = drawn(1, 3, 4), torch.zeros(1, 4, 4, dtype=torch.float64)
        assert torch.allclose(least_squares_target(weight, nothing, nothing, damping=0.01), weight, atol=1e-12)


class TestDegenerateInputs:
    def test_independent_inputs_leave_nearest_rounding(self):
        weight = drawn(1, 8, 6)
        grid = grid_of(weight, 3)
        found = second_order_round(weight, torch.eye(6, dtype=torch.float64)[None], grid)
        assert torch.equal(found, grid.nearest(weight))

    @pytest.mark.parametrize("sweeps", [0, 2])
    def test_no_input_at_all(self, sweeps):
        weight = drawn(2, 3, 5)
        grid = grid_of(weight, 4)
        found = second_order_round(weight, torch.zeros(2, 5, 5, dtype=torch.float64), grid, sweeps=sweeps)
        assert torch.equal(found, grid.nearest(weight))

    @pytest.mark.parametrize("sweeps", [0, 2])
    def test_a_dead_input_keeps_its_nearest_weight_and_the_others_theirs(self, sweeps):
        weight, moments = drawn(1, 4, 6), moments_of(1, 5)
        grid = grid_of(weight, 3)
        alive = torch.tensor([0, 1, 2, 4, 5])
        with_dead = torch.zeros(1, 6, 6, dtype=torch.float64)
        with_dead[0, alive[:, None], alive] = moments[0]
        found = second_order_round(weight, with_dead, grid, damping=1e-9, sweeps=sweeps)
        expected = second_order_round(weight[:, :, alive], moments, grid, damping=1e-9, sweeps=sweeps)
        assert torch.equal(found[:, :, 3], grid.nearest(weight)[:, :, 3])
        assert torch.equal(found[:, :, alive], expected)

    def test_constant_inputs_keep_the_sum_of_the_weights(self):
        """Of inputs that are always alike only their weights' sum counts: the last column makes it good."""
        weight, moments = drawn(1, 16, 20), torch.ones(1, 20, 20, dtype=torch.float64)
        grid = grid_of(weight, 4)
        found = second_order_round(weight, moments, grid, damping=1e-6)
        off, nearest = ((w.sum(2) - weight.sum(2)).abs() for w in (found, grid.nearest(weight)))
        assert (off <= grid.scale * 0.51).all()
        assert off.sum() < 0.5 * nearest.sum()

    def test_many_groups_of_one_channel(self):
        weight, moments = drawn(64, 1, 9), moments_of(64, 9)
        grid = grid_of(weight, 2)
        found = second_order_round(weight, moments, grid)
        for group in range(64):
            own = RowGrid(grid.scale[[group]], grid.zero_point[[group]], -1, 1)
            assert torch.equal(found[[group]], second_order_round(weight[[group]], moments[[group]], own))


class TestErrors:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_inputs_that_are_not_finite(self, bad):
        weight, moments = drawn(1, 2, 3), moments_of(1, 3)
        moments[0, 1, 1] = bad
        with pytest.raises(InputError, match="finite"):
            second_order_round(weight, moments, grid_of(weight, 4))

    def test_singular_moments_without_damping(self):
        weight = drawn(1, 2, 4)
        with pytest.raises(InputError, match="give a larger damping"):
            second_order_round(weight, torch.ones(1, 4, 4, dtype=torch.float64), grid_of(weight, 4), damping=0.0)

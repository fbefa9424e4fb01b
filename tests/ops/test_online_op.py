"""online_fake_quantize: one call equals statistics, range, grid and fake_quantize one after the other, to the bit."""

import pytest
import torch
from hard_inputs import DTYPES, LAYOUTS, assert_same, hard_tensor

from pytorch_quantizer import InputError, TensorStatistics, ops, reference
from pytorch_quantizer.quantization.clipping import Domain, analytic_reach, choose_range
from pytorch_quantizer.quantization.qparams import GridSpec

GRIDS = [(True, -8, 7), (True, -7, 7), (False, -8, 7), (False, 0, 15)]
RULES = [("none", 0.0), ("abs_dev", 3.8972), ("deviation", 2.5591)]
SUPPORTS = [("real", float("inf")), ("rectified", float("inf")), ("rectified", 6.0), ("nonnegative", float("inf"))]
TENSORS = {
    "normal": lambda x: x,
    "shifted": lambda x: x + 9,
    "positive": lambda x: x.abs(),
    "negative": lambda x: -x.abs() - 1,
    "constant": lambda x: torch.full_like(x, 2.5),
    "zero": lambda x: torch.zeros_like(x),
    "centred": lambda x: torch.cat([x, -x]),
    "tiny": lambda x: x * 1e-42,
    "huge": lambda x: x.sign() * 3e38,
}


def check(x, axis, grid, rule, support):
    symmetric, qmin, qmax = grid
    keywords = {
        "axis": axis, "spread": rule[0], "reach": rule[1], "support": support[0], "ceiling": support[1],
        "symmetric": symmetric, "relu": support[0] == "rectified",
    }  # fmt: skip
    got, expected = (kind.online_fake_quantize(x, qmin, qmax, **keywords) for kind in (ops, reference))
    for one, other in zip(got, expected, strict=True):
        assert_same(one, other)
    out = torch.empty_like(x)
    y, scale, zero_point = ops.online_fake_quantize(x, qmin, qmax, **keywords, out=out)
    assert y is out
    for one, other in zip((y, scale, zero_point), expected, strict=True):
        assert_same(one, other)


class TestParity:
    """On the CPU the statistics themselves agree with the reference to a rounding of float32 here, so all does."""

    @pytest.mark.parametrize("kind", TENSORS)
    @pytest.mark.parametrize("grid", GRIDS)
    def test_rules(self, device, kind, grid):
        x = TENSORS[kind](torch.randn(3, 19, 5, 23, generator=torch.Generator().manual_seed(0)) * 5).to(device)
        for rule in RULES:
            for support in SUPPORTS:
                for axis in (None, 1):
                    check(x, axis, grid, rule, support)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, device, layout, dtype):
        x = hard_tensor(layout, dtype, device).nan_to_num(0, 50, -50).clamp(-60, 60)
        for axis in (None, 0, 1, -1):
            check(x, axis, GRIDS[3], RULES[1], SUPPORTS[1])


@pytest.mark.parametrize("support", ["real", "rectified", "nonnegative"])
@pytest.mark.parametrize("method", ["minmax", "std:2.5", "laplace", "gaussian"])
@pytest.mark.parametrize("spec", [GridSpec(4, True, True), GridSpec(4, False, False), GridSpec(8, True, False)])
def test_the_rule_is_that_of_calibration(method, support, spec):
    torch.manual_seed(0)
    x = torch.randn(4, 7, 5) * 3 + 0.5
    x = x.abs() if support == "nonnegative" else x
    statistics = TensorStatistics.from_tensor(x)
    expected = spec.over(*choose_range(statistics, method=method, grid=spec, domain=Domain(support)))
    spread, reach = analytic_reach(method, spec.bits, support)
    rule = {"spread": spread, "reach": reach, "support": support, "symmetric": spec.symmetric}
    _, scale, zero_point = ops.online_fake_quantize(x, expected.qmin, expected.qmax, **rule)
    assert_same(scale, expected.scale)
    assert_same(zero_point, expected.zero_point)


@pytest.mark.parametrize("method", ["mse", "kl", "laplace:exact", "auto", "percentile:99"])
def test_other_methods_have_no_such_rule(method):
    assert analytic_reach(method, 4, "real") is None


class TestEdges:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_what_has_no_range_gives_nan(self, device, bad):
        x = torch.randn(3, 10, device=device)
        x[1, 2] = bad
        y, scale, _ = ops.online_fake_quantize(x, 0, 15, spread="abs_dev", reach=2.0, axis=0)
        assert scale.isnan().tolist() == [False, True, False]
        assert y.isnan().any(1).tolist() == [False, True, False]
        assert y[1].isnan().all()

    @pytest.mark.parametrize(("excess", "zero_points"), [(2.0**-22, (0, 8)), (2e-5, (-1, 7))])
    def test_a_range_as_good_as_symmetric_is_centred(self, device, excess, zero_points):
        x = torch.tensor([-1.0, 1.0 + excess], device=device)
        for (qmin, qmax), expected in zip(((-8, 7), (0, 15)), zero_points, strict=True):
            for kind in (ops, reference):
                assert kind.online_fake_quantize(x, qmin, qmax)[2] == expected

    def test_empty(self, device):
        y, scale, zero_point = ops.online_fake_quantize(torch.zeros(0, 3, device=device), 0, 15)
        assert y.shape == (0, 3)
        assert scale.isnan()
        assert zero_point == 0

    def test_in_place(self, device):
        x = torch.randn(1000, device=device)
        expected = ops.online_fake_quantize(x, 0, 15, relu=True, support="rectified", spread="abs_dev", reach=4.0)[0]
        y, _, _ = ops.online_fake_quantize(x, 0, 15, relu=True, support="rectified", spread="abs_dev", reach=4.0, out=x)
        assert y is x
        assert_same(x, expected)

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"spread": "variance"}, r"spread must be one of none, abs_dev, deviation .* got 'variance'"),
            ({"support": "unit"}, r"support one of real, rectified, nonnegative, got 'none' and 'unit'"),
            ({"symmetric": True}, r"a symmetric grid must be signed, got qmin=0"),
            ({"axis": 3}, r"axis must name one of the 1 dimensions"),
            ({"rounding": "up"}, r"rounding must be one of"),
            ({"spread": "abs_dev", "reach": float("nan")}, r"reach must be finite, 0 or more, .* got nan"),
            ({"support": "rectified", "ceiling": float("nan")}, r"ceiling above 0, got 0.0 and nan"),
        ],
    )
    def test_one_clear_error(self, keywords, message):
        with pytest.raises(InputError, match=message):
            ops.online_fake_quantize(torch.randn(5), 0, 15, **keywords)

    def test_a_gradient_is_refused(self):
        with pytest.raises(InputError, match="online_fake_quantize has no gradient"):
            ops.online_fake_quantize(torch.randn(5, requires_grad=True), 0, 15)

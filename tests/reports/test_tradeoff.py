"""The points of a sweep: bits, differences, and the Pareto front, checked by brute force."""

import itertools
import math
import random

import pandas as pd
import pytest
from report_examples import sweep_rows

from pytorch_quantizer.reports.palette import styles
from pytorch_quantizer.reports.pareto import on_front
from pytorch_quantizer.reports.tradeoff import bits_of, front_line, mean_points, tradeoff_points


@pytest.mark.parametrize(
    ("name", "bits"),
    [("int4", 4), ("uint16", 16), ("float32", 32), ("mxfp4", 4), ("fp8_e4m3", 8), ("ternary", 2), ("binary", 1)],
)
def test_bits_of_a_number_type(name, bits):
    assert bits_of(name) == bits


@pytest.mark.parametrize("name", ["pot", "int2 … int8, mixed"])
def test_no_bits_of_what_tells_none_or_several(name):
    assert math.isnan(bits_of(name))


class TestFront:
    def test_by_hand(self):
        assert on_front([1, 2, 3, 3], [5, 4, 6, 7]) == [True, False, False, True]

    def test_equals_are_on_it_together(self):
        assert on_front([1, 1, 1], [2, 2, 1]) == [True, True, False]

    def test_what_is_unknown_is_not_on_it_and_beats_nobody(self):
        assert on_front([math.nan, 1, 0], [9, 2, math.nan]) == [False, True, False]

    def test_no_point_off_it_is_unbeaten_and_none_on_it_beaten(self):
        draw = random.Random(0)
        for _ in range(50):
            pairs = [(draw.randrange(6), draw.randrange(6)) for _ in range(8)]
            chosen = on_front(*zip(*pairs, strict=True))
            for (cost, value), is_on in zip(pairs, chosen, strict=True):
                beaten = any(c <= cost and v >= value and (c < cost or v > value) for c, v in pairs)
                assert is_on is not beaten

    def test_the_line_climbs_in_steps(self):
        means = pd.DataFrame({"kib": [3.0, 1.0, 2.0], "percent": [9.0, 5.0, 1.0], "front": [True, True, False]})
        assert front_line(means) == ([1, 3, 3, 3], [5, 5, 9, 9])

    def test_an_empty_front_has_no_line(self):
        assert front_line(pd.DataFrame({"kib": [], "percent": [], "front": pd.Series([], dtype=bool)})) == ([], [])


class TestPoints:
    def test_rows_with_figures_alone(self):
        rows = tradeoff_points(sweep_rows())
        assert len(rows) == len(sweep_rows()) - 1
        assert rows["key"].is_unique

    def test_what_is_drawn(self):
        first = tradeoff_points(sweep_rows()).iloc[0]
        assert (first["setting"], first["bits"], first["panel"]) == ("W8A8", 16, "resnet20 on cifar10")
        assert first["percent"] == pytest.approx(91)
        assert first["drop"] == pytest.approx(-0.5)
        assert first["ratio"] == pytest.approx(290 / 1090)

    def test_seeds_of_a_recipe_are_on_the_front_together(self):
        rows = tradeoff_points(sweep_rows())
        for _, seeds in rows.groupby(["recipe", "weights", "activations"]):
            assert seeds["front"].nunique() == 1
        assert rows["front"].any()

    def test_a_few_bytes_of_a_name_are_no_reason(self):
        rows = sweep_rows(recipes=2, seeds=1).assign(weights="int8", activations="int8", error="")
        rows = rows.assign(top1=[0.9, *[0.8] * (len(rows) - 1)], size_bytes=range(100_000 + len(rows), 100_000, -1))
        rows["fp32_top1"] = 0.95
        rows["recipe"] = [str(i) for i in range(len(rows))]
        assert list(tradeoff_points(rows)["front"]) == [True] + [False] * (len(rows) - 1)

    def test_each_network_has_a_front_of_its_own(self):
        rows = pd.concat([sweep_rows().assign(arch=arch, top1=top1) for arch, top1 in (("a", 0.9), ("b", 0.1))])
        found = tradeoff_points(rows.assign(fp32_top1=0.95))
        assert set(found[found["front"]]["panel"]) == {"a on cifar10", "b on cifar10"}

    def test_means_are_over_seeds(self):
        rows = tradeoff_points(sweep_rows(recipes=1))
        means = mean_points(rows)
        assert len(means) == 6
        assert means["percent"].iloc[0] == pytest.approx(rows["percent"].iloc[:2].mean())

    @pytest.mark.parametrize("column", ["checkpoint", "samples"])
    def test_other_weights_and_other_images_have_charts_of_their_own(self, column):
        values = {"checkpoint": ("a/one.th", "a/two.th"), "samples": (100, 500)}[column]
        one, other = (sweep_rows(recipes=1).assign(**{column: value}) for value in values)
        found = tradeoff_points(pd.concat([one, other.assign(top1=other["top1"] - 0.5, fp32_top1=0.4)]))
        assert {panel: set(part["fp32_top1"]) for panel, part in found.groupby("panel")} == {
            f"resnet20 on cifar10, {name}": {float32}
            for name, float32 in zip(
                {"checkpoint": ("one.th", "two.th"), "samples": ("100 images", "500 images")}[column],
                (0.915, 0.4),
                strict=True,
            )
        }
        assert found[found["front"]]["panel"].nunique() == 2

    @pytest.mark.parametrize("column", ["calibration_samples", "settings"])
    def test_means_are_not_over_other_settings(self, column):
        rows = pd.concat([sweep_rows(recipes=1).assign(**{column: value}) for value in ("1", "2")])
        assert len(mean_points(tradeoff_points(rows))) == 12
        assert tradeoff_points(rows)["panel"].nunique() == 1

    def test_files_of_one_name_are_told_apart_by_their_folders(self):
        rows = pd.concat([sweep_rows(recipes=1).assign(checkpoint=path) for path in ("a/net.th", "b/net.th")])
        assert {*tradeoff_points(rows)["panel"]} == {f"resnet20 on cifar10, {path}/net.th" for path in "ab"}

    def test_columns_that_older_tables_lack(self):
        few = sweep_rows().drop(columns=["agreement", "fp32_size_bytes", "f1"])
        assert tradeoff_points(few)["same"].isna().all()


def test_styles_differ_in_colour_and_shape():
    made = list(styles(map(str, range(56))).values())
    assert len(set(made)) == 56
    for one, next_one in itertools.pairwise(made):
        assert one.colour != next_one.colour
        assert one.shape != next_one.shape

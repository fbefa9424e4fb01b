"""The leaderboard's rows: of several tables one, means and intervals, Markdown."""

import math

import pandas as pd
import pytest
from scipy.stats import t as student

from pytorch_quantizer import InputError
from pytorch_quantizer.experiments.leaderboard_table import (
    COLUMNS,
    GROUP,
    beside,
    joined,
    markdown,
    read_rows,
    require_fitting,
    summary,
    table_of,
    without,
)


def rows(*tops, method="mse", error=""):
    made = [
        dict.fromkeys(COLUMNS)
        | {"dataset": "digits", "arch": "resnet20", "method": method, "weights": "int4", "activations": "int8"}
        | {
            "seed": seed,
            "top1": top,
            "fp32_top1": 0.95,
            "residual": "narrow",
            "deployable": True,
            "error": error,
            "samples": 500,
            "calibration_images": 1024,
            "float_weights": "12e4",
        }
        | {"seconds": 2.0 + seed, "first_last": "int8", "granularity": "weights per-channel, activations per-tensor"}
        for seed, top in enumerate(tops)
    ]
    return table_of(made)


def named(*tables):
    return {f"{index}.csv": table for index, table in enumerate(tables)}


class TestJoined:
    def test_the_first_table_s_cells_stand(self):
        found = joined(named(rows(0.9), rows(0.8, 0.7), rows(0.6, 0.5, 0.4)))
        assert list(zip(found["seed"], found["top1"], strict=True)) == [(0, 0.9), (1, 0.7), (2, 0.4)]

    def test_but_not_those_that_failed(self):
        failed = rows(None, None, error="RuntimeError: no")
        found = joined(named(failed, rows(0.8)))
        assert list(found["error"]) == ["", "RuntimeError: no"]
        assert found["top1"].iloc[0] == 0.8

    def test_in_the_order_of_a_whole_table(self):
        wide = rows(0.9).assign(residual="wide")
        low = rows(0.9, method="minmax").assign(weights="int2", activations="int2")
        low_weights, low_activations = rows(0.9).assign(weights="int2"), rows(0.9).assign(activations="int4")
        future = rows(0.9, method="of tomorrow")
        first = rows(0.9, 0.8, method="minmax")
        found = joined(named(wide, low, low_activations, low_weights, future, rows(0.9, method="qat"), first))
        told = found[["residual", "weights", "activations", "method", "seed"]].apply(lambda row: [*row], axis=1)
        assert list(told) == [
            ["narrow", "int4", "int8", "minmax", 0],
            ["narrow", "int4", "int8", "minmax", 1],
            ["narrow", "int4", "int8", "qat", 0],
            ["narrow", "int4", "int8", "of tomorrow", 0],
            ["narrow", "int4", "int4", "mse", 0],
            ["narrow", "int2", "int8", "mse", 0],
            ["narrow", "int2", "int2", "minmax", 0],
            ["wide", "int4", "int8", "mse", 0],
        ]

    @pytest.mark.parametrize(
        ("column", "value", "said"),
        [
            ("float_weights", "abcd", r"weights \(SHA-256\): 12e4 in 0\.csv and abcd in 1\.csv"),
            ("samples", 200, r"number of test images: 500 in 0\.csv and 200 in 1\.csv"),
        ],
    )
    def test_only_of_the_same_network_and_images(self, column, value, said):
        other = rows(0.8).assign(**{column: value})
        with pytest.raises(InputError, match=rf"--join: .* resnet20 on digits has another {said}"):
            joined(named(rows(0.9), other))
        assert len(joined(named(rows(0.9), other.assign(arch="resnet32")))) == 2

    @pytest.mark.parametrize(("images", "right"), [(500, 2), (10_000, 10)])
    def test_another_machine_s_sums_may_cost_the_float_network_some_images(self, images, right):
        own = rows(0.9).assign(samples=images)
        for many in (right, -right):
            assert len(joined(named(own, rows(0.8).assign(samples=images, fp32_top1=0.95 + many / images)))) == 1
            other = rows(0.8).assign(samples=images, fp32_top1=0.95 + 1.5 * many / images)
            with pytest.raises(InputError, match=r"another float32 accuracy: 0\.95 in 0\.csv and 0\.9.* in 1\.csv"):
                joined(named(own, other))

    def test_a_mean_is_of_one_policy(self):
        old, new = (rows(0.9, 0.8).assign(weight_grid=grid) for grid in ("symmetric", "affine"))
        said = (
            r"mse of int4 int8 narrow on resnet20 has weight_grid affine \(seed 0, 0\.csv\) and symmetric "
            r"\(seed 1, 1\.csv\): measure all its seeds alike"
        )
        with pytest.raises(InputError, match=said):
            require_fitting(named(new.head(1), old))
        require_fitting(named(new, old))  # of a cell that several hold the first counts
        require_fitting(named(new.head(1).assign(error="RuntimeError: no"), old))

    @pytest.mark.parametrize(("column", "value"), [("calibration_images", 256), ("epochs", 20)])
    def test_a_mean_is_of_what_learned_from_as_much(self, column, value):
        with pytest.raises(InputError, match=rf"has {column} .* \(seed 0, 0\.csv\) and .* \(seed 1, 1\.csv\)"):
            require_fitting(named(rows(0.9), rows(0.9, 0.8).assign(**{column: value}).astype({column: "Int64"})))

    def test_beside_a_run_stands_what_it_does_not_have_and_what_is_like_it(self):
        other = pd.concat([rows(0.1, 0.2), rows(0.3, 0.4, method="minmax"), rows(0.5, 0.6, method="aciq laplace")])
        own = pd.concat([rows(0.9), rows(0.9, method="minmax").assign(weight_grid="affine")])
        failed = rows(None, error="RuntimeError: no", method="aciq laplace").assign(weight_grid="affine")
        assert list(beside(other, pd.concat([own, failed]))["top1"]) == [0.2, 0.6]
        assert len(beside(other, rows())) == 6

    def test_without_some_cells(self):
        table = pd.concat([rows(0.9, 0.8, 0.7), rows(0.6, method="minmax")])
        left = without(table, rows(None, None).assign(seed=[1, 5], top1=None))
        assert list(left["top1"]) == [0.9, 0.7, 0.6]
        assert len(without(table, rows())) == 4

    def test_there_and_back(self, tmp_path):
        table = pd.concat(
            [
                rows(0.9),
                rows(None, error="InputError: no", method="minmax"),
            ]
        )
        table.to_csv(tmp_path / "leaderboard.csv", index=False)
        found = read_rows(tmp_path / "leaderboard.csv")
        assert list(found) == list(COLUMNS)
        assert joined(named(found)).to_csv(index=False) == joined(named(table)).to_csv(index=False)
        assert summary(found)["failed"].to_list() == [0, 1]

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("weights", "kmeans4"),
            ("deployable", "perhaps"),
            ("float_weights", ""),
            ("samples", None),
            ("fp32_top1", None),
            ("samples", 10.5),
            ("seconds", None),
            ("epochs", "many"),
            ("fp32_top1", 1.5),
            ("seed", "zero"),
            ("residual", "slim"),
            ("top1", "high"),
            ("top1", 98.5),
            ("top1", None),
        ],
    )
    def test_values_that_no_run_writes(self, tmp_path, column, value):
        rows(0.9).astype(object).assign(**{column: value}).to_csv(tmp_path / "other.csv", index=False)
        with pytest.raises(InputError, match=rf"other\.csv: {column} must be "):
            read_rows(tmp_path / "other.csv")

    def test_shares_as_small_as_two_images_of_many(self, tmp_path):
        rows(4e-5).to_csv(tmp_path / "other.csv", index=False)
        assert list(read_rows(tmp_path / "other.csv")["top1"]) == [4e-5]

    def test_weights_stay_text(self, tmp_path):
        rows(0.9).to_csv(tmp_path / "other.csv", index=False)
        assert list(read_rows(tmp_path / "other.csv")["float_weights"]) == ["12e4"]

    def test_a_cell_whose_policy_is_unknown_changes_no_other_s(self, tmp_path):
        failed = rows(None, error="InputError: no", method="mse").assign(deployable=None)
        table = pd.concat([rows(0.9, method="aciq paper").assign(deployable=False), failed])
        table.to_csv(tmp_path / "leaderboard.csv", index=False)
        assert "| aciq paper | no | 90.00" in markdown(read_rows(tmp_path / "leaderboard.csv"), "")

    @pytest.mark.parametrize("from_file", [True, False])
    def test_nor_that_of_its_method(self, tmp_path, from_file):
        """It failed before its policy was known."""
        failed = rows(None, error="InputError: no").assign(deployable=None, weights="int8")
        table = pd.concat([failed, rows(0.9)])
        if from_file:
            table.to_csv(tmp_path / "leaderboard.csv", index=False)
            table = read_rows(tmp_path / "leaderboard.csv")
        assert "| mse | yes | failed | 90.00" in markdown(table, "")

    def test_tables_without_a_cell(self, tmp_path):
        assert len(joined(named(rows(), rows()))) == 0
        rows().to_csv(tmp_path / "leaderboard.csv", index=False)
        assert markdown(joined(named(read_rows(tmp_path / "leaderboard.csv"))), "none") == (
            "# Every method at every width\n\nnone\n"
        )
        assert len(joined(named(rows(), rows(0.9)))) == 1

    def test_what_is_no_table(self, tmp_path):
        path = tmp_path / "other.csv"
        with pytest.raises(InputError, match=rf"can't read {path} \(.*\): give the leaderboard.csv"):
            read_rows(path)
        with pytest.raises(InputError, match=rf"{tmp_path} is a folder: give the leaderboard\.csv in it"):
            read_rows(tmp_path)
        path.write_bytes(b"\x00\xff\xfe")
        with pytest.raises(InputError, match=rf"can't read {path} \(.*\): give the leaderboard.csv"):
            read_rows(path)
        rows(0.9)[GROUP].to_csv(path, index=False)
        with pytest.raises(InputError, match=r"other\.csv lacks seed, top1, fp32_top1, first_last, "):
            read_rows(path)


class TestSummary:
    def test_the_mean_and_the_interval_of_students_t(self):
        [found] = summary(rows(0.90, 0.91, 0.95)).to_dict("records")
        spread = pd.Series([0.90, 0.91, 0.95]).std()
        assert found["top1"] == pytest.approx(0.92)
        assert found["half_interval"] == pytest.approx(student.ppf(0.975, 2) * spread / math.sqrt(3))
        assert (found["seeds"], found["failed"], found["seconds"]) == (3, 0, 3.0)

    def test_one_seed_has_no_interval(self):
        assert math.isnan(summary(rows(0.9))["half_interval"].iloc[0])

    def test_cells_that_failed_are_counted_and_leave_the_mean_to_the_others(self):
        [found] = summary(pd.concat([rows(0.9, 0.8), rows(None, error="InputError: no")])).to_dict("records")
        assert (found["seeds"], found["failed"]) == (2, 1)
        assert found["top1"] == pytest.approx(0.85)

    def test_methods_stay_apart_and_in_order(self):
        table = summary(pd.concat([rows(0.9, method="mse"), rows(0.8, method="aciq")]))
        assert list(zip(table["method"], table["top1"], strict=True)) == [("mse", 0.9), ("aciq", 0.8)]


class TestTables:
    TABLE = pd.concat([rows(0.90, 0.92), rows(0.5, method="minmax"), rows(None, method="none", error="InputError: no")])

    def test_markdown(self):
        text = markdown(self.TABLE, "As measured.")
        assert "## resnet20 on digits, narrow residual stream: float32 95.00 % of 500 images\n" in text
        assert "| mse | yes | 91.00 ± 12.71 (2 s) |" in text
        assert "| minmax | yes | 50.00 (2 s) |" in text
        assert "| none | yes | failed |" in text
        assert "- resnet20, none, int4 int8, seed 0: InputError: no" in text

    def test_no_failures_no_list_of_them(self):
        assert "failed" not in markdown(rows(0.9), "")

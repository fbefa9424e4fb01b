"""The table of a sweep: rows that come in whole, once a key, and back with their types."""

import pandas as pd
import pytest

from pytorch_quantizer import InputError
from pytorch_quantizer.sweeps import results as module
from pytorch_quantizer.sweeps.results import COLUMNS, CSV, PARQUET, Results, empty_table, read_results


def row(key, **other):
    return {"key": key, "seed": 1, "calibration_samples": 8, "dataset": "digits", "error": ""} | other


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path)


HARD = {"recipe": 'a "quoted", name\nof two lines ü', "error": "NA", "settings": '{"clip": "mse"}', "arch": "NaN"}


class TestRows:
    def test_come_back_as_they_went_in(self, results, tmp_path):
        results.put(row("a", top1=0.1 + 0.2, deployable=True, samples=2**40, **HARD))
        results.put(row("b", deployable=False))
        table = read_results(tmp_path)
        assert list(table) == list(COLUMNS)
        assert {name: table[name].iloc[0] for name in HARD} == HARD
        assert table["top1"].iloc[0] == 0.1 + 0.2
        assert table["samples"].iloc[0] == 2**40
        assert list(table["deployable"]) == [True, False]
        assert pd.isna(table["top1"].iloc[1])
        assert table["recipe"].iloc[1] == ""
        assert Results(tmp_path).table().equals(table)

    def test_lie_on_disk_as_soon_as_they_are_put(self, results, tmp_path):
        for count, key in enumerate("abc", 1):
            results.put(row(key))
            assert list(read_results(tmp_path)["key"]) == list("abc")[:count]

    def test_of_one_key_are_one_row(self, results, tmp_path):
        results.put(row("a", error="failed"))
        results.put(row("b"))
        results.put(row("a", top1=0.5))
        table = read_results(tmp_path)
        assert list(table["key"]) == ["a", "b"]
        assert list(table["error"]) == ["", ""]
        assert results.find("a")["top1"] == 0.5

    def test_of_an_earlier_run_stay(self, results, tmp_path):
        results.put(row("a", top1=0.25))
        again = Results(tmp_path)
        assert again.find("a")["top1"] == 0.25
        assert again.find("b") is None
        again.put(row("b"))
        assert list(read_results(tmp_path)["key"]) == ["a", "b"]

    def test_are_put_in_order_in_the_end(self, results, tmp_path):
        for key in "cab":
            results.put(row(key))
        results.finish(["a", "b", "absent"])
        assert list(read_results(tmp_path)["key"]) == ["a", "b", "c"]

    def test_a_row_that_cannot_be_written_leaves_the_others(self, results, tmp_path, monkeypatch):
        results.put(row("a"))

        def full(path, data):
            raise OSError("no space left on device")

        monkeypatch.setattr(module, "write_atomically", full)
        with pytest.raises(OSError, match="no space"):
            results.put(row("b"))
        assert list(read_results(tmp_path)["key"]) == ["a"]

    def test_what_a_killed_process_left_is_cleared_away(self, tmp_path):
        (tmp_path / f".{CSV}.abc.tmp").write_text("half a row")
        Results(tmp_path).put(row("a"))
        assert [path.name for path in tmp_path.iterdir()] == [CSV]


class TestParquet:
    def test_is_the_same_table(self, results, tmp_path):
        pytest.importorskip("pyarrow")
        results.put(row("a", top1=0.5, **HARD))
        results.put(row("b", error="failed"))
        results.finish([])
        assert read_results(tmp_path / PARQUET).equals(read_results(tmp_path))

    def test_is_left_out_where_pandas_cannot_write_it(self, results, tmp_path, monkeypatch):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
        results.put(row("a"))
        results.finish([])
        assert not results.write_parquet()
        assert not (tmp_path / PARQUET).exists()


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a,b\n1,2\n", "lacks the column 'dataset'"),
            ("", "can't read"),
            (",".join(COLUMNS) + "\n" + "x," * len(COLUMNS) + "\n", "results"),
        ],
    )
    def test_another_table(self, tmp_path, text, said):
        (tmp_path / CSV).write_text(text)
        with pytest.raises(InputError, match=said) as raised:
            Results(tmp_path)
        assert str(tmp_path) in str(raised.value)

    def test_no_table(self, tmp_path):
        with pytest.raises(InputError, match="can't read"):
            read_results(tmp_path)

    def test_a_parquet_file_that_is_none(self, tmp_path):
        pytest.importorskip("pyarrow")
        (tmp_path / PARQUET).write_bytes(b"PAR1 no")
        with pytest.raises(InputError, match="can't read"):
            read_results(tmp_path / PARQUET)


def test_an_empty_table_has_the_types():
    assert {name: str(kind) for name, kind in empty_table().dtypes.items()}["top1"] == "float64"

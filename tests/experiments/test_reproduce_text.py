"""A table as people and programs read it: published figures beside measured ones, units, what runs where."""

import csv
import io

import pytest

from pytorch_quantizer.experiments.reproduce import ONNX_RUNTIME, Row, Table, Timing
from pytorch_quantizer.experiments.reproduce_text import as_csv, as_markdown, records, row_line, runs_as

WHOLE, ONE = Timing("test set", batch=128), Timing("8 x 8", batch=1, images=1)
TABLE = Table(
    name="tiny",
    title="Tiny",
    dataset="digits",
    arch="resnet20",
    timings=(WHOLE, ONE),
    columns=("top1", "f1"),
    note="A note.",
    rows=(
        Row("float32", published={"top1": 0.5, "file": 1.5e6}),
        Row("int4", "w4a4_statistical", ONNX_RUNTIME, published={"test set": 2500}),
    ),
)
ABOUT = {"calibration_samples": 1024, "split": "train", "threads": 1}


def rates_of(**changes):
    shared = {
        "samples": 2000,
        "correct": 1000,
        "top1": 0.5,
        "top1_interval": [0.4, 0.6],
        "precision": 0.1,
        "recall": 0.2,
    }
    shared |= {"f1": 0.3, "simulated_top1": None, "agreement": None, "execution": "float32", "runtime": "PyTorch 2"}
    return shared | {"checkpoint_bytes": 2_000_000, "floats": [], "choice": None, "kept": True} | changes


RATES = {
    "float32": rates_of(),
    "int4": rates_of(
        **{"top1": 0.25, "execution": "integer", "runtime": "ONNX Runtime 1", "floats": ["a", "b", "c", "d"]},
        **{"checkpoint_bytes": 300_000, "onnx_bytes": 400_000, "choice": "int8: exact", "agreement": 1.0},
    ),
}
TIME = {"batch_size": 1, "threads": 1, "repeats": 3, "p10_ms": 1.0, "p90_ms": 3.0}
TIMES = {
    "test set": {"float32": {**TIME, "median_ms": 1500.0}, "int4": {**TIME, "median_ms": 750.0}, "kept": True},
    "8 x 8": {"float32": {**TIME, "median_ms": 1.25}, "int4": {**TIME, "median_ms": 0.5}, "kept": True},
}


def cells(text):
    """The titles of a Markdown table, and by row's name its cells."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return lines[0], {row[0]: row[1:] for row in lines[2:]}


class TestMarkdown:
    @pytest.fixture(scope="class")
    @staticmethod
    def text():
        return as_markdown(TABLE, RATES, TIMES, ABOUT)

    def test_published_figures_stand_beside_what_was_measured(self, text):
        titles, rows = cells(text)
        expected = ["accuracy", "published", "F1", "weights, MB", "published", "ONNX file, MB", "test set, s"]
        assert titles == ["recipe", *expected, "published", "8 x 8, ms", "runs as"]
        rates, sizes = ["50.00 %", "50.00 %", "30.00 %"], ["2.000", "1.500", "–"]
        assert rows["float32"] == ["–", *rates, *sizes, "1.50", "–", "1.25", "float32, PyTorch 2"]
        rates, sizes = ["25.00 %", "–", "30.00 %"], ["0.300", "–", "0.400"]
        assert rows["int4"][:-1] == ["w4a4_statistical", *rates, *sizes, "0.75", "2.50", "0.50"]

    def test_what_stays_in_float_is_named(self, text):
        assert cells(text)[1]["int4"][-1] == "partly integer, ONNX Runtime 1; 4 layers and additions in float (a, b, …)"
        assert runs_as(RATES["int4"] | {"floats": ["a"]}) == "partly integer, ONNX Runtime 1; a in float"
        assert runs_as(RATES["int4"] | {"floats": []}) == "integer, ONNX Runtime 1"
        assert runs_as(RATES["float32"]) == "float32, PyTorch 2"

    def test_the_notes_say_on_what(self, text):
        said = ("# Tiny", "2,000 test images", "1,024 training images", "on 1 thread", "A note.", "int8: exact.")
        assert all(part in text for part in said)
        assert "batches of 128" in text
        assert "Simulated" not in text

    def test_simulated_times_are_not_taken_for_integer_ones(self):
        text = as_markdown(TABLE, RATES | {"int4": rates_of(execution="simulated")}, TIMES, ABOUT)
        assert "says nothing of integer hardware" in text

    def test_without_times_there_are_no_columns_of_them(self):
        text = as_markdown(TABLE, RATES, {}, ABOUT)
        assert "test set" not in cells(text)[0]
        assert "Times" not in text


class TestCsv:
    def test_a_line_a_row_with_every_number(self):
        lines = list(csv.DictReader(io.StringIO(as_csv(records(TABLE, RATES, TIMES)))))
        assert [line["row"] for line in lines] == ["float32", "int4"]
        first, second = lines
        assert (first["recipe"], second["recipe"]) == ("float32", "w4a4_statistical")
        assert (first["onnx_bytes"], second["onnx_bytes"]) == ("", "400000")
        assert (second["execution"], second["floats"], second["choice"]) == ("integer", "a b c d", "int8: exact")
        assert (first["test_set_median_ms"], second["8x8_p90_ms"]) == ("1500.0", "3.0")
        assert (first["published_top1"], first["published_test_set"]) == ("0.5", "")
        assert (first["top1_low"], first["top1_high"]) == ("0.4", "0.6")

    def test_without_times(self):
        assert not any("median" in name for name in records(TABLE, RATES, {})[0])


def test_a_row_as_it_comes():
    line = row_line(TABLE.rows[1], RATES["int4"] | {"kept": False, "seconds": 12.4})
    assert line.startswith("int4 ")
    assert "25.00 % of 2,000 images" in line
    assert line.endswith("(12 s)")


def test_a_row_says_how_long_it_was_trained():
    trained = Table("t", "T", "digits", "resnet20", (Row("int8", "w8a8", epochs=3),), ())
    _, rows = cells(as_markdown(trained, {"int8": rates_of()}, {}, ABOUT))
    assert rows["int8"][0] == "w8a8, 3 epochs"

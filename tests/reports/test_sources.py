"""Files are read for what they are; what is missing, damaged or something else is named."""

import json

import pandas as pd
import pytest
from report_examples import record, write_all, write_diagnosis, write_run, write_sweep

from pytorch_quantizer import InputError
from pytorch_quantizer.reports.sources import read_material


def test_each_kind_by_what_it_holds(tmp_path):
    found = read_material(write_all(tmp_path))
    counts = {name: len(entries) for name, entries in vars(found).items()}
    assert counts == dict.fromkeys(
        ("runs", "sweeps", "leaderboards", "diagnoses", "comparisons", "ablations", "benches", "trainings"), 1
    )


def test_files_are_taken_as_folders_are(tmp_path):
    write_all(tmp_path)
    files = [tmp_path / "sweep/results.csv", tmp_path / "board/leaderboard.csv", tmp_path / "run/result.json"]
    found = read_material(files)
    assert (len(found.sweeps), len(found.leaderboards), len(found.runs)) == (1, 1, 1)


def test_a_folder_of_folders(tmp_path):
    for name in ("b", "a"):
        write_run(tmp_path / name)
    assert [run.name for run in read_material([tmp_path]).runs] == ["a", "b"]


def test_a_run_and_its_diagnosis_in_one_folder(tmp_path):
    write_run(tmp_path)
    write_diagnosis(tmp_path)
    found = read_material([tmp_path])
    assert (len(found.runs), len(found.diagnoses)) == (1, 1)


def test_a_recipe_may_be_called_null(tmp_path):
    table = pd.read_csv(write_sweep(tmp_path) / "results.csv").assign(recipe="null")
    table.to_csv(tmp_path / "results.csv", index=False)
    assert set(read_material([tmp_path]).sweeps[0].rows["recipe"]) == {"null"}


class TestMistakes:
    def refused(self, path):
        with pytest.raises(InputError) as stopped:
            read_material([path])
        return str(stopped.value)

    def test_nothing_there(self, tmp_path):
        assert str(tmp_path / "nowhere") in self.refused(tmp_path / "nowhere")

    def test_an_empty_folder(self, tmp_path):
        assert "holds nothing to report" in self.refused(tmp_path)

    @pytest.mark.parametrize("text", ["{", "", "[1]", "{}", '{"quantized": 1}', "\ufffd"])
    def test_a_damaged_record(self, tmp_path, text):
        (tmp_path / "result.json").write_text(text)
        assert str(tmp_path / "result.json") in self.refused(tmp_path)

    def test_a_table_of_something_else(self, tmp_path):
        (tmp_path / "results.csv").write_text("a,b\n1,2\n")
        assert "lacks dataset, arch" in self.refused(tmp_path)

    @pytest.mark.parametrize("text", ["", '"', "a\n1,2,3\n"])
    def test_a_damaged_table(self, tmp_path, text):
        (tmp_path / "results.csv").write_text(text)
        assert str(tmp_path / "results.csv") in self.refused(tmp_path)

    def test_a_run_without_its_layers(self, tmp_path):
        (write_run(tmp_path) / "layers.csv").unlink()
        assert "layers.csv isn't there" in self.refused(tmp_path)

    def test_a_picture_is_no_source(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"x")
        assert "a.png is nothing to report" in self.refused(tmp_path / "a.png")

    def test_a_record_of_an_older_version(self, tmp_path):
        write_run(tmp_path)
        old = {name: value for name, value in record().items() if name != "recipe"}
        (tmp_path / "result.json").write_text(json.dumps(old))
        assert "lacks recipe" in self.refused(tmp_path)

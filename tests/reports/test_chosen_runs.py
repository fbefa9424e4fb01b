"""Of many runs a page shows the best in full, or those that are named; all are points of its charts."""

import json
import re

import pytest
from report_examples import write_run

from pytorch_quantizer import InputError
from pytorch_quantizer.reports.chosen_runs import MOST_RUNS, chosen_runs
from pytorch_quantizer.reports.figures import figures_of
from pytorch_quantizer.reports.report import report
from pytorch_quantizer.reports.sources import read_material

# Top-1 and bytes: b, c, d, f and g are on the front, and b is the least accurate of them.
RUNS = {"a": (0.3, 900), "b": (0.2, 100), "c": (0.4, 200), "d": (0.5, 300), "e": (0.45, 400), "f": (0.6, 500)}
RUNS |= {"g": (0.7, 600)}


@pytest.fixture
def material(tmp_path):
    for name, (top1, size) in RUNS.items():
        path = write_run(tmp_path / name, name=name) / "result.json"
        found = json.loads(path.read_text())
        found["quantized"] |= {"top1": top1, "size_bytes": size}
        path.write_text(json.dumps(found))
    return read_material([tmp_path])


def names(runs):
    return [run.name for run in runs]


def test_the_most_accurate_of_the_front(material):
    assert names(chosen_runs(material.runs)) == ["c", "d", "f", "g"]


def test_all_of_a_few(material):
    assert names(chosen_runs(material.runs[:MOST_RUNS])) == ["a", "b", "c", "d"]
    assert chosen_runs([]) == []


def test_those_that_are_named_however_many(material):
    assert names(chosen_runs(material.runs, ["g", "a", "b", "c", "e"])) == ["a", "b", "c", "e", "g"]


@pytest.mark.parametrize(("count", "said"), [(7, "such as a, .*got 'aa'"), (0, "of which there is none; got 'aa'")])
def test_a_name_that_is_none(material, count, said):
    with pytest.raises(InputError, match=said):
        chosen_runs(material.runs[:count], ["aa"])


def test_the_page_has_all_as_points_and_tells_which_are_shown_in_full(material):
    page = report(material)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert [title for title in titles if "Noise" in title] == [f"{name}: Noise of each tensor" for name in "cdfg"]
    assert "Tensors and classes are shown of c, d, f, g" in page
    assert "7 of 7 points" in page
    assert "a: Classes that suffer" in report(material, detail=["a"])


def test_figures_are_of_the_same(material):
    drawn = [name for name, _ in figures_of(material, detail=["a"])]
    assert {name.split("_")[0] for name in drawn} == {"runs", "a"}


def test_folders_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / parent / "run") for parent in ("one", "other")]
    assert names(read_material(folders).runs) == ["run", "run 2"]

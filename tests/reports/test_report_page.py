"""The page without a browser: all sections are there, nothing is fetched, no text of a file is markup."""

import json
import re
from dataclasses import asdict

import pytest
from report_examples import (
    EVIL,
    board_rows,
    diagnosis,
    measures,
    record,
    sweep_rows,
    tensors,
    write_all,
    write_run,
    write_sweep,
)

from pytorch_quantizer import InputError, Recipe
from pytorch_quantizer.reports.chart import source_of
from pytorch_quantizer.reports.costs import LOOKS, latency_rows, size_rows
from pytorch_quantizer.reports.layers import MOST_DB, measured_tensors
from pytorch_quantizer.reports.methods import method_points, methods_chart
from pytorch_quantizer.reports.page import page as page_of
from pytorch_quantizer.reports.pages import write_methods_page, write_sensitivity_page, write_tensors_page
from pytorch_quantizer.reports.provenance import recipe_section
from pytorch_quantizer.reports.report import report, write_report_page
from pytorch_quantizer.reports.runs_table import runs_table
from pytorch_quantizer.reports.section import Section
from pytorch_quantizer.reports.sources import Material, read_material, run_of
from pytorch_quantizer.reports.tradeoff import tradeoff_points


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report(read_material(write_all(tmp_path_factory.mktemp("all"))))


def titles(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_all_sections_from_the_many_to_the_single(page):
    assert titles(page) == [
        "Sweep sweep: accuracy against size and bits",
        "Recipes, versions and machine of sweep",
        "Methods: board",
        "Noise of each tensor",
        "Sensitivity of layers",
        "Values, ranges and grids",
        "Classes that suffer",
        "Latency and size",
        "Recipe",
        "Versions and machine",
        "Simulation, integers and runtime (compare)",
        "Versions and machine (compare)",
        "Which ingredient did what (ablation)",
        "Versions and machine (ablation)",
        "Latency and size (bench)",
        "Versions and machine (bench)",
        "Training of net",
    ]
    assert re.findall(r'<a href="#(s\d+)">', page) == [f"s{i}" for i in range(17)]


def test_nothing_is_fetched(page):
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)
    assert "@import" not in page
    assert "url(" not in page.split("<style>")[1].split("</style>")[0]


def test_no_text_of_a_file_is_markup(page):
    assert EVIL not in page
    assert page.count("<script>window.ran") == 0
    assert "&lt;script&gt;window.ran" in page


def test_no_name_ends_the_scripts_data():
    evil = "</script><script>window.ran = 1</script>"
    made = page_of("t", [Section("s", exchanged={"run": {evil: {"said": evil}}}, related={evil: [evil]})])
    [data] = re.findall(r'id="report-data">(.*?)</script>', made)
    assert "<" not in data
    assert json.loads(data)["exchanged"] == {"run": {evil: {"said": evil}}}


def test_the_title_may_be_chosen_and_is_text(tmp_path):
    made = report(read_material([write_sweep(tmp_path)]), title="<b>mine</b>")
    assert "<title>&lt;b&gt;mine&lt;/b&gt;</title>" in made


def test_sizes_labels_and_runtimes_are_told(page):
    assert "simulated" in page
    assert "PyTorch 1.2" in page
    assert "says nothing of integer hardware" in page


def test_what_runs_in_integers_has_its_bars_and_label():
    exported = measures(0.8, "integer", 300) | {"size_label": "file on disk: ONNX"}
    rows = latency_rows(record() | {"exported": exported})
    assert list(rows["label"]) == ["float32", "simulated", "integer"] * 2
    assert list(rows["batch_size"]) == [1, 1, 1, 32, 32, 32]
    assert list(size_rows(record() | {"exported": exported})["bytes"]) == [1000, 270, 300]


def test_what_is_left_in_float_is_told(page):
    assert "1 tensor left in float, and why" in page
    assert "network output" in page


def test_several_runs_are_points_and_sections_of_their_own(tmp_path):
    folders = [write_run(tmp_path / name, name=name) for name in ("one", "two")]
    made = titles(report(read_material(folders)))
    assert made[0] == "Runs: accuracy against size and bits"
    assert made[1:3] == ["one: Noise of each tensor", "one: Values, ranges and grids"]
    assert len(made) == 1 + 2 * 6


def test_runs_are_rows_of_a_sweep(tmp_path):
    table = runs_table(read_material([write_run(tmp_path)]).runs)
    assert table.loc[0, ["top1", "fp32_top1", "size_bytes"]].tolist() == [0.8, 0.85, 270]


def test_what_mixed_precision_gave_stands_in_place_of_what_was_asked_for(tmp_path):
    write_run(tmp_path)
    made = record() | {"types": {"weights": "int2 … int8, mixed", "activations": "int8"}}
    (tmp_path / "result.json").write_text(json.dumps(made))
    read = read_material([tmp_path])
    assert "int2 … int8, mixed / int8<small>weights / activations" in report(read)
    table = runs_table(read.runs)
    assert table.loc[0, ["weights", "activations"]].tolist() == ["int2 … int8, mixed", "int8"]
    assert tradeoff_points(table).loc[0, "setting"] == "W?A8"


def test_runs_of_other_weights_have_charts_of_their_own(tmp_path):
    folders = [write_run(tmp_path / name, checkpoint=f"{name}.th") for name in ("one", "two")]
    panels = tradeoff_points(runs_table(read_material(folders).runs))["panel"]
    assert list(panels) == ["resnet20 on cifar10, one.th", "resnet20 on cifar10, two.th"]


def test_a_recipe_is_told_by_what_it_changes():
    recipe = json.loads(json.dumps(asdict(Recipe(name="mine", weights="int4"))))
    shown = recipe_section(recipe, "run", "").parts[0].html
    assert "int4" in shown
    assert "overrides" not in shown
    assert "activations" not in shown


def test_labels_of_costs_look_different():
    assert len(set(LOOKS.values())) == len(LOOKS) == 3


def test_what_loses_nothing_has_a_bar_that_ends():
    shown = measured_tensors(tensors()).set_index("name")["sqnr_db_shown"]
    assert shown["fc.weight"] == MOST_DB
    assert shown["relu1"] == 18


def test_nothing_to_show():
    with pytest.raises(InputError, match="nothing to report"):
        report(Material())


def test_a_run_without_details_has_no_pictures_of_values(tmp_path):
    (write_run(tmp_path) / "details.json").unlink()
    made = titles(report(read_material([tmp_path])))
    assert "Values, ranges and grids" not in made
    assert "Noise of each tensor" in made


def test_a_run_in_memory_gives_the_page_that_its_files_give(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "details.json").unlink()
    material = Material(runs=[run_of("run", record(), tensors(), None)])
    read = read_material([tmp_path / "run"])
    assert material.runs[0].record == read.runs[0].record
    assert material.runs[0].layers.equals(read.runs[0].layers)


def test_the_file_is_written_whole_and_its_size_told(tmp_path):
    size = write_report_page(tmp_path / "deep" / "r.html", read_material([write_sweep(tmp_path)]))
    written = (tmp_path / "deep" / "r.html").read_bytes()
    assert len(written) == size < 5 * 2**20
    assert written.rstrip().endswith(b"</html>")


def test_a_sweep_that_has_no_rows_yet(tmp_path):
    sweep_rows().head(0).to_csv(tmp_path / "results.csv", index=False)
    assert "No point has figures yet" in report(read_material([tmp_path]))


class TestSmallPages:
    def test_of_a_run(self, tmp_path):
        write_tensors_page(tmp_path / "l.html", tensors(), record())
        page = (tmp_path / "l.html").read_text()
        assert titles(page) == ["Noise of each tensor"]
        assert "relu1" in page

    def test_of_a_diagnosis(self, tmp_path):
        table, said = diagnosis()
        table.attrs = {name: said.pop(name) for name in ("samples", "float_top1", "quantized_top1")}
        write_sensitivity_page(tmp_path / "s.html", table, said)
        page = (tmp_path / "s.html").read_text()
        assert "fc hurts most. On 23 images, float32 85.00 %, all quantized 80.00 %." in page
        [script] = re.findall(r'id="report-data">(.*?)</script>', page)
        assert json.loads(script)["linked"] == ["sensitivity_layers"]

    def test_of_a_leaderboard(self, tmp_path):
        write_methods_page(tmp_path / "b.html", board_rows())
        assert titles((tmp_path / "b.html").read_text()) == ["Methods"]


def test_the_axis_of_methods_holds_whole_intervals():
    part = method_points(board_rows()).query("setting == 'W4A4'")
    made = methods_chart(part, source_of(part))
    assert made.x_range.start < part["low"].min() < part["high"].max() < made.x_range.end
    assert made.x_range.end > 91.5  # the float network's

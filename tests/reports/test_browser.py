"""The page in a real Chromium: it is drawn without a complaint or a request, and does what it promises."""

import pandas as pd
import pytest
from chromium import Opened, browser, needs_chromium
from report_examples import EVIL, details, sweep_rows, write_all, write_diagnosis, write_run, write_sweep

from pytorch_quantizer.reports.report import write_report_page
from pytorch_quantizer.reports.sources import read_material

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all")
    path = folder / "report.html"
    write_report_page(path, read_material(write_all(folder)))
    return path.as_uri()


@pytest.fixture(scope="module")
def run_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    path = folder / "report.html"
    write_report_page(path, read_material([write_run(folder / "run"), write_diagnosis(folder / "diagnosis")]))
    return path.as_uri()


@pytest.fixture(scope="module")
def run_opened(chromium, run_page):
    page = Opened(chromium, run_page)
    page.picked_at_first = page.page.locator("select").input_value(), page.source("runbars", "count")
    yield page
    page.close()


@pytest.fixture(scope="module")
def sweep_opened(chromium, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_report_page(folder / "report.html", read_material([write_sweep(folder)]))
    page = Opened(chromium, (folder / "report.html").as_uri())
    yield page
    page.close()


@pytest.fixture
def opened(run_opened):
    yield run_opened
    run_opened.unselect()


@pytest.fixture
def sweep(sweep_opened):
    yield sweep_opened
    sweep_opened.unselect()


COLOURS = """() => Array.from(Bokeh.index).filter((view) => view.frame).map((view) => {
    const canvas = view.export("png", false).canvas;
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(pixels.buffer)).size;
})"""


@pytest.fixture(scope="module")
def whole(chromium, everything):
    page = Opened(chromium, everything)
    yield page
    page.close()


class TestTheWholePage:
    def test_nothing_complains_and_no_network_is_asked(self, whole, everything):
        assert whole.complaints == []
        assert [url for url in whole.requests if not url.startswith(("data:", "blob:"))] == [everything]

    def test_every_chart_is_drawn(self, whole):
        figures = whole.page.locator("figure")
        assert figures.count() == len(whole.run("Bokeh.documents[0].roots().map((root) => root.id)")) > 15
        for i in range(figures.count()):
            box = figures.nth(i).bounding_box()
            assert box["height"] > 100
            assert box["width"] > 300
        assert min(whole.run(COLOURS)) > 20  # shades of letters, lines and marks

    def test_nothing_from_a_file_runs(self, whole):
        assert whole.run("window.ran") is None
        assert EVIL in whole.page.inner_text("body")
        assert whole.page.locator("section script").count() == 0

    def test_no_name_makes_the_page_look_for_mathematics(self, whole):
        assert whole.run("document.querySelectorAll('mjx-container').length") == 0

    def test_every_table_downloads_what_it_holds(self, whole):
        links = whole.page.locator("a.download")
        assert links.count() == whole.page.locator("table").count()
        names = [links.nth(i).get_attribute("download") for i in range(links.count())]
        assert len(set(names)) == len(names)
        with whole.page.expect_download() as saved:
            whole.page.locator("a[download='sweep.csv']").click()
        found = pd.read_csv(saved.value.path(), keep_default_na=False, na_values=[""])
        expected = sweep_rows()
        pd.testing.assert_frame_equal(found.drop(columns="error"), expected.drop(columns="error"), check_dtype=False)
        assert list(found["error"].fillna("")) == list(expected["error"])

    def test_on_paper_there_are_no_controls_and_all_rows(self, whole):
        whole.page.emulate_media(media="print")
        assert not whole.page.locator("nav").is_visible()
        assert not whole.page.locator(".download").first.is_visible()
        heights = "Array.from(document.querySelectorAll('.scroll'), (one) => one.scrollHeight - one.clientHeight)"
        assert max(whole.run(heights)) <= 1
        widths = "Array.from(document.querySelectorAll('.scroll'), (one) => one.scrollWidth - one.clientWidth)"
        assert max(whole.run(widths)) <= 1  # no column is cut off
        whole.page.emulate_media(media="screen")
        assert whole.page.pdf(prefer_css_page_size=True)[:5] == b"%PDF-"


class TestOnAPhone:
    def test_only_tables_scroll_sideways(self, chromium, everything):
        page = Opened(chromium, everything, width=360, height=780)
        assert page.run("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
        widths = page.run("Array.from(document.querySelectorAll('figure'), (one) => one.getBoundingClientRect().right)")
        assert max(widths) <= 360
        assert page.complaints == []
        page.close()

    def test_long_names_are_broken(self, chromium, tmp_path):
        path = tmp_path / "report.html"
        folders = [write_run(tmp_path / f"{'resnet20_' * 8}{i}") for i in range(2)]
        write_report_page(path, read_material([*folders, write_diagnosis(tmp_path / ("sensitivity_" * 8))]))
        page = Opened(chromium, path.as_uri(), width=360, height=780)
        assert page.run("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
        page.close()


class TestHovering:
    def test_a_point_tells_its_recipe_as_text(self, sweep):
        recipe = sweep.source("sweep0", "recipe")[0]
        x, y = (sweep.source("sweep0", name)[0] for name in ("kib", "percent"))
        sweep.page.mouse.move(*sweep.place(0, x, y))
        sweep.page.locator(".bk-Tooltip", has_text=recipe).first.wait_for(timeout=3000)
        assert sweep.run("window.ran") is None
        assert sweep.complaints == []


class TestSelecting:
    def test_a_point_marks_its_row_and_stands_out_in_the_other_chart(self, sweep):
        x, y = (sweep.source("sweep0", name)[3] for name in ("kib", "percent"))
        sweep.page.mouse.click(*sweep.place(0, x, y))
        chosen = sweep.source("sweep0", "selected")
        assert 3 in chosen
        rows = sweep.page.locator("tr.selected")
        assert [rows.nth(i).get_attribute("data-key") for i in range(rows.count())] == [f"p{i}" for i in sorted(chosen)]

    def test_a_row_marks_its_point_and_again_unmarks_it(self, sweep):
        row = sweep.page.locator("tr[data-key='p5']")
        row.click()
        assert sweep.source("sweep0", "selected") == [5]
        row.click()
        assert sweep.source("sweep0", "selected") == []

    def test_by_keyboard(self, sweep):
        sweep.page.locator("tr[data-key='p2']").press("Enter")
        assert sweep.source("sweep0", "selected") == [2]

    def test_a_tensor_marks_the_layers_that_read_it(self, opened):
        opened.page.locator("tr[data-key='runt:relu1']").click()
        layers = [opened.source("run_layers", "layer")[i] for i in opened.source("run_layers", "selected")]
        assert sorted(layers) == ["add", "fc"]
        names = opened.source("runtensors", "name")
        assert [names[i] for i in opened.source("runtensors", "selected")] == ["relu1"]
        assert opened.source("runweights", "selected") == []

    def test_a_layer_marks_the_tensors_that_it_reads(self, opened):
        opened.page.locator("tr[data-key='runl:fc']").click()
        names, chosen = opened.source("runtensors", "name"), opened.source("runtensors", "selected")
        assert sorted(names[i] for i in chosen) == ["add", "relu1"]
        weights = opened.source("runweights", "name")
        assert [weights[i] for i in opened.source("runweights", "selected")] == ["fc.weight"]

    def test_a_bar_is_a_selection_too(self, opened):
        opened.page.mouse.click(*opened.place(1, 5, "relu2"))
        assert opened.page.locator("tr.selected[data-key='runt:relu2']").count() == 1
        assert opened.page.locator("select").input_value() == "runt:relu2"


class TestPicking:
    def test_the_worst_activation_is_shown_at_first(self, opened):
        assert opened.picked_at_first == ("runt:relu2", [20, 10, 5])

    def test_another_tensor_brings_its_own_numbers(self, opened):
        opened.page.locator("select").select_option("runt:relu1")
        entry = details()["tensors"][1]
        assert opened.source("runbars", "count") == entry["histogram"]["counts"]
        assert opened.source("runbars", "left")[:2] == [0, 0.25]
        assert sum(opened.source("runbars", "share")) == pytest.approx(100 * 25 / 35)
        assert opened.source("runlevels", "x") == entry["levels"]
        assert opened.source("runends", "x") == [0, 6]
        assert opened.source("runbatches", "high") == [5, 7.5, 6]
        assert "relu1: uint4" in opened.page.inner_text("p[data-said]")
        assert opened.page.locator("tr.selected[data-key='runt:relu1']").count() == 1

    def test_a_weight_has_no_batches_and_is_shown_in_codes(self, opened):
        opened.page.locator("select").select_option("runt:conv1.weight")
        assert opened.source("runbatches", "batch") == []
        assert "the same for all batches" in opened.page.inner_text("p[data-batches]")
        label = "Bokeh.documents[0].get_model_by_name('runlinear').below[0].axis_label"
        assert "code" in opened.run(label)
        assert opened.complaints == []


class TestSorting:
    def test_by_number_both_ways(self, sweep):
        head = sweep.page.locator("th", has_text="top-1").first
        cells = "Array.from(document.querySelectorAll('tbody')[0].rows, (row) => row.cells[4].textContent)"
        head.click()
        rising = [float(text.split()[0]) for text in sweep.run(cells)]
        head.click()
        falling = [float(text.split()[0]) for text in sweep.run(cells)]
        assert rising == sorted(rising)
        assert falling == sorted(rising, reverse=True)

"""Figures for papers: one PNG and one SVG a chart, the same bytes for the same data."""

import sys
from importlib.util import find_spec

import pytest
from PIL import Image
from report_examples import EVIL, write_all, write_run, write_sweep

from pytorch_quantizer import InputError
from pytorch_quantizer.reports.figures import write_figures
from pytorch_quantizer.reports.sources import read_material

pytestmark = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra [figures]")
EXPECTED = (
    *("sweep_resnet20_on_cifar10_size", "sweep_resnet20_on_cifar10_bits", "board_cifar10_resnet20_narrow_W4A4"),
    *("board_cifar10_resnet20_narrow_W2A4", "run_sqnr_weights", "run_sqnr_tensors", "run_relu2_values"),
    *("run_relu2_batches", "run_classes", "run_confusion", "run_latency", "run_size", "diagnosis_sensitivity"),
    *("ablation_resnet20_paper", "ablation_resnet20_deployable", "bench_latency"),
    *("bench_size", "net_training"),
)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return read_material(write_all(tmp_path_factory.mktemp("all")))


@pytest.fixture(scope="module")
def written(material, tmp_path_factory):
    return write_figures(tmp_path_factory.mktemp("figures"), material)


def test_every_chart_twice(written):
    assert {path.name for path in written} == {f"{name}{suffix}" for name in EXPECTED for suffix in (".png", ".svg")}


def test_pictures_hold_something_at_a_papers_resolution(written):
    for path in written:
        if path.suffix == ".png":
            image = Image.open(path).convert("L")
            assert image.width > 900
            assert image.getextrema() == (pytest.approx(0, abs=90), 255)


def test_text_stays_text_and_is_no_markup(written):
    svg = next(path for path in written if path.name == "board_cifar10_resnet20_narrow_W4A4.svg").read_text()
    assert "minmax" in svg
    assert EVIL not in svg
    assert "&lt;script&gt;" in svg
    assert "<script" not in svg


def test_logarithmic_axes_have_plain_numbers(written):
    svg = next(path for path in written if path.name == "run_relu2_values.svg").read_text()
    assert "mathdefault" not in svg
    assert ">10</text>" in svg


def test_the_same_data_give_the_same_bytes(written, material, tmp_path):
    again = write_figures(tmp_path, material)
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def test_another_tensor(tmp_path):
    run = read_material([write_run(tmp_path / "run")])
    names = {path.name for path in write_figures(tmp_path, run, "conv1.weight")}
    assert "run_conv1.weight_values.svg" in names
    assert not any(name.endswith("_batches.svg") for name in names)


def test_a_tensor_that_is_not_there(tmp_path, material):
    with pytest.raises(InputError, match=r"--tensor must be .* such as conv1\.weight, .* got 'conv1'"):
        write_figures(tmp_path, material, "conv1")


def test_a_tensor_where_there_are_none(tmp_path):
    with pytest.raises(InputError, match="'x' is none that was read: only folders of `pq run`"):
        write_figures(tmp_path, read_material([write_sweep(tmp_path / "sweep")]), "x")


def test_without_matplotlib(tmp_path, material, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pytorch-quantizer\[figures\]"):
        write_figures(tmp_path, material)

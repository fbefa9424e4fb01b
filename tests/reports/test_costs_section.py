"""What a bench tells of latency and size is on its page: each form at each batch, what was left out, and why."""

import html

from report_examples import EVIL, bench

from pytorch_quantizer.reports.costs import bench_section, form_sizes, timed_rows
from pytorch_quantizer.reports.section import Markup


def test_a_bar_a_form_and_batch_and_a_size_a_form():
    rows = timed_rows(bench())
    forms = ["float32", "quantized", "quantized, ONNX"]
    assert list(rows["name"]) == [f"{form}, batch of {batch}" for batch in (1, 32) for form in forms]
    assert list(rows["median_ms"]) == [2.0] * 3 + [33.0] * 3
    sizes = form_sizes(bench())
    assert list(zip(sizes["model"], sizes["bytes"], strict=True)) == list(zip(forms, (1000, 270, 300), strict=True))


def test_what_was_timed_and_what_was_left_out_is_told():
    section = bench_section(bench(), "bench", "Latency and size")
    assert "resnet20 on cifar10" in section.lead
    assert "images 32 x 48" in section.lead
    assert "float32, ONNX is left out: it is" in section.lead
    assert "says nothing of integer hardware" in section.lead
    tables = [str(part) for part in section.parts if isinstance(part, Markup)]
    assert len(tables) == 2
    assert html.escape(EVIL) in tables[0]
    assert EVIL not in "".join(tables)

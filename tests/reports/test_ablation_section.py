"""An ablation on a page: each cell at its place, the float network beside it."""

import pytest
from report_examples import EVIL, ablation

from pytorch_quantizer.reports.ablation import ablation_chart, ablation_rows, ablation_section


def test_every_cell_is_a_row():
    rows = ablation_rows(ablation())
    assert len(rows) == 2 * 5
    first = rows.iloc[0]
    assert (first["arch"], first["setting"], first["column"], first["row"]) == ("resnet20", "paper", "8W4A", "baseline")
    assert (first["percent"], first["low"], first["high"]) == pytest.approx((50, 45, 55))
    assert set(rows["fp32_percent"]) == {85}


def test_a_chart_a_setting_and_a_table_of_all():
    section = ablation_section(ablation(), "ablation", "")
    assert [type(part).__name__ for part in section.parts] == ["Drawing", "Drawing", "Markup"]
    assert "Ranges from 64 images of the train split" in section.lead
    assert "<script>" not in section.parts[-1].html


def test_marks_stand_at_their_ingredient_the_first_on_top():
    rows = ablation_rows(ablation())
    made = ablation_chart(rows[rows["setting"] == "paper"])
    assert made.y_range.factors == ["all", f"+ {EVIL}", "baseline"]
    marks = [glyph.data_source.data for glyph in made.renderers if "percent" in glyph.data_source.data]
    assert [list(data["row"]) for data in marks] == [["baseline", "all"], ["baseline", f"+ {EVIL}", "all"]]
    assert marks[1]["percent"] == pytest.approx([50, 60, 70])

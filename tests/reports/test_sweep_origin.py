"""What a sweep's page says of its recipes, versions and machines."""

import pandas as pd
from report_examples import origins, sweep_rows, write_sweep

from pytorch_quantizer.reports.report import report
from pytorch_quantizer.reports.sources import read_material
from pytorch_quantizer.reports.sweep_origin import recipes_table, sweep_origin_section

ROWS = pd.DataFrame(
    {
        **{"recipe": ["a", "a", "b"], "seed": [0, 1, 0], "code": ["one", "one", "two"]},
        "settings": ['{"name": "a", "weights": "int4"}', '{"name": "a", "weights": "int4"}', "{}"],
    }
)


def shown(rows, found):
    return "".join(part.html for part in sweep_origin_section(rows, found, "sweep", "").parts)


def test_a_recipe_stands_there_once_with_what_it_changes():
    assert recipes_table(ROWS).values.tolist() == [["a", "weights: int4"], ["b", ""]]


def test_versions_and_machines_of_each_code_that_measured():
    html = shown(ROWS, origins() | {"three": {"versions": {"torch": "of nobody"}, "machines": []}})
    for said in ("Versions of code one", "2.12", "Versions of code two", "2.13", "a CPU", "another CPU"):
        assert said in html
    assert "of nobody" not in html


def test_where_nothing_is_known_it_says_so():
    assert "versions and machine are not known" in shown(ROWS, {})
    assert "versions and machine are not known" in shown(sweep_rows().drop(columns=["settings", "code"]), origins())


def test_it_is_read_and_is_on_the_page(tmp_path):
    html = report(read_material([write_sweep(tmp_path)]))
    assert "Recipes, versions and machine" in html
    assert "another CPU" in html
    assert "clip: mse" in html

"""Tables: text is text, numbers sort as numbers, and the CSV behind the link holds every digit."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from report_examples import EVIL

from pytorch_quantizer.reports.table import bytes_text, counted, html_table, pairs_table, percent, points, written

TABLE = pd.DataFrame({"name": [EVIL, "b"], "share": [0.12345678901234567, np.nan], "count": [3, 12]})


def downloaded(html):
    [encoded] = re.findall(r"base64,([^\"]*)", html)
    return base64.b64decode(encoded).decode()


def test_text_is_text():
    html = html_table(TABLE, "t").html
    assert EVIL not in html
    assert "&lt;script&gt;" in html


def test_the_file_holds_every_digit_and_all_columns():
    html = html_table(TABLE[["name"]], "t", whole=TABLE).html
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(downloaded(html))), TABLE)


def test_the_files_name_is_one_that_any_system_takes():
    assert 'download="a_b_.._c.csv"' in html_table(TABLE, "a/b:..\\c").html


def test_what_is_missing_is_empty():
    row = re.findall(r"<tr.*?</tr>", html_table(TABLE, "t", formats={"share": percent}).html)[2]
    assert re.sub("<.*?>", "|", row).replace("|", "") == "b12"


def test_numbers_sort_by_themselves_not_by_what_is_shown():
    html = html_table(TABLE, "t", formats={"share": percent}).html
    assert f'data-value="{float(TABLE["share"][0])!r}"' in html
    assert "12.35 %" in html
    assert 'data-value="12.0"' in html


def test_keys_are_text_too():
    assert 'data-key="&lt;a&gt;&quot;"' in html_table(TABLE, "t", keys=['<a>"', "b"]).html


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(None, "–"), (True, "yes"), (np.bool_(False), "no"), ("int8", "int8"), (0.5, "0.5"), ([], "–")],
        *[([1, "a"], "1, a"), ({"layers": "x", "weights": None}, "layers: x")],
    ],
)
def test_values_of_a_recipe(value, text):
    assert written(value) == text


def test_pairs_are_rows():
    assert downloaded(pairs_table({"a": 1, "b": None}, "p").html) == "name,value\na,1\nb,–\n"


def test_words():
    assert (percent(0.9173), points(-1e-9), points(0.0123), bytes_text(2048)) == (
        "91.73 %",
        "+0.00",
        "+1.23",
        "2.0 KiB",
    )
    assert (counted(1, "point"), counted(2, "point")) == ("1 point", "2 points")

"""A table as HTML: sorted by a click, read by anyone, and downloaded as CSV without a network.
What is in it is the sections' business.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from pytorch_quantizer.reports.section import Markup

Formats = Mapping[str, Callable[[Any], str]]


def html_table(
    shown: pd.DataFrame,
    name: str,
    *,
    formats: Formats | None = None,
    whole: pd.DataFrame | None = None,
    keys: Sequence[str] | None = None,
    caption: str = "",
) -> Markup:
    """A table with a link that saves NAME.csv: ``whole``, else ``shown``, every digit of it.

    formats: by column, how a value is written; else as it is, and nothing where it is missing. keys: a row's, by which
    selecting it marks points in charts and the other way round.
    """
    columns = [str(column) for column in shown]
    cells = [_column(shown[column], (formats or {}).get(column)) for column in columns]
    numeric = [_is_numeric(shown[column]) for column in columns]
    head = "".join(
        f'<th scope="col"{_number(kind)}>{escape(column)}</th>' for column, kind in zip(columns, numeric, strict=True)
    )
    rows = [f"<tr{_key(keys, i)}>{_cells(row, numeric)}</tr>" for i, row in enumerate(zip(*cells, strict=True))]
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    data = shown if whole is None else whole
    return Markup(f'<div class="table"><div class="scroll">{body}</div>{csv_link(data, name)}</div>')


def csv_link(data: pd.DataFrame, name: str) -> str:
    """A link that holds the table as CSV and saves it as NAME.csv."""
    text = data.to_csv(index=False)
    encoded = base64.b64encode(text.encode()).decode()
    file = re.sub(r"[^\w.-]+", "_", name) + ".csv"
    return (
        f'<a class="download" download="{file}" href="data:text/csv;charset=utf-8;base64,{encoded}">Download {file}</a>'
    )


def pairs_table(pairs: Mapping[str, Any], name: str, caption: str = "") -> Markup:
    """Names and values, a pair a row."""
    rows = pd.DataFrame({"name": list(pairs), "value": [written(value) for value in pairs.values()]})
    return html_table(rows, name, caption=caption)


def written(value: Any) -> str:
    """A plain value as a recipe's file would have it."""
    if value is None:
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(written, value)) or "–"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {written(entry)}" for key, entry in value.items() if entry is not None)
    return str(value)


def counted(number: int, noun: str) -> str:
    """1 point, 2 points."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(rate: float) -> str:
    """0.9173 as 91.73 %."""
    return f"{100 * rate:.2f} %"


def points(difference: float) -> str:
    """A difference of rates in points, with its sign, but never −0.00."""
    return f"{round(100 * difference, 2) + 0.0:+.2f}"


def bytes_text(size: float) -> str:
    """1,093,136 bytes as 1,067.5 KiB."""
    return f"{size / 1024:,.1f} KiB"


def _is_numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)


def _column(values: pd.Series, write: Callable[[Any], str] | None) -> list[tuple[Any, str]]:
    return [(value, "" if _missing(value) else escape(write(value) if write else str(value))) for value in values]


def _cells(row: Sequence[tuple[Any, str]], numeric: Sequence[bool]) -> str:
    pairs = zip(row, numeric, strict=True)
    return "".join(f"<td{_order(raw)}{_number(kind)}>{text}</td>" for (raw, text), kind in pairs)


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)


def _order(raw: Any) -> str:
    """What page.js sorts a number by; text by itself."""
    is_number = isinstance(raw, Real) and not isinstance(raw, bool) and not _missing(raw)
    return f' data-value="{float(raw)!r}"' if is_number else ""


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _key(keys: Sequence[str] | None, row: int) -> str:
    return "" if keys is None else f' data-key="{escape(keys[row])}" tabindex="0"'

"""A sweep while it runs, in the browser: a bokeh server on this machine alone that reads results.csv as rows come.
The page of a finished one is report.py's.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, FactorRange
from bokeh.models.widgets import Div
from bokeh.server.server import Server

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.reports.chart import Chart, chart, rows_where
from pytorch_quantizer.reports.palette import Style, styles
from pytorch_quantizer.reports.sources import read_sweep
from pytorch_quantizer.reports.table import counted, percent
from pytorch_quantizer.reports.tradeoff import DRAWN, TOOLTIPS, tradeoff_points

ADDRESS, PORT = "127.0.0.1", 5006
EVERY_MS = 1000
RESULTS = "results.csv"
MOST_KINDS = 8  # of activations, each with a colour and a shape
SHOWN = 50  # of the table, the newest
TEXT: Any = {"font": "14px/1.5 system-ui, sans-serif", "overflow-x": "auto", "max-width": "100%"}
WRITTEN: dict[str, Callable[[Any], str]] = {"top1": percent, "seconds": lambda seconds: f"{seconds:.1f}"}
SIGNS = {
    **{"circle": "●", "square": "■", "triangle": "▲", "diamond": "◆", "inverted_triangle": "▼", "hex": "⬢"},
    **{"star": "★", "plus": "✚"},
}


def serve(source: Path, port: int = PORT) -> None:
    """Show a sweep's folder, or its results.csv, until Ctrl-C. Raises InputError where the port is taken."""
    server = start(source, port)
    print(f"http://{ADDRESS}:{server.port}/ shows {results_of(source)} as rows come; Ctrl-C ends it", flush=True)
    server.run_until_shutdown()  # which stops it, too


def start(source: Path, port: int = PORT) -> Any:
    """The bokeh server, listening on this machine alone; ``port`` 0 is any that is free."""
    path = results_of(source)
    if path.exists():
        read_sweep(path)  # a file that is no sweep's is said now
    application = Application(FunctionHandler(lambda document: fill(document, path)))
    try:
        port = port or _free_port()
        own = [f"{ADDRESS}:{port}", f"localhost:{port}"]  # no other site's page may speak to it
        return Server({"/": application}, address=ADDRESS, port=port, allow_websocket_origin=own)
    except OSError as error:
        raise InputError(f"port {port} can't be used ({error.strerror or error}): give another --port") from error


def results_of(source: Path) -> Path:
    """The table that a sweep writes; it, but not its folder, may be missing yet."""
    path = source / RESULTS if source.is_dir() or source.suffix != ".csv" else source
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} isn't there: give the folder that a sweep writes to (its --output)")
    return path


def fill(document: Document, path: Path) -> None:
    """Put the charts into a page, and keep them up to date with the file."""
    view = LiveView(path)
    document.title = f"Sweep {path.parent.name}"
    document.add_root(view.layout())
    document.add_periodic_callback(view.update, EVERY_MS)


class LiveView:
    """Charts and table of a results.csv, brought up to date by ``update``."""

    def __init__(self, path: Path) -> None:
        self.path, self.seen = path, (0, 0)
        self.source = ColumnDataSource({name: [] for name in (*DRAWN, "kind")}, name="points")
        self.settings = FactorRange()
        self.said = Div(text="No rows yet: each comes as its point is measured.", name="said", styles=TEXT)
        self.table = Div(text="", name="table", styles=TEXT)
        self.update()

    def layout(self) -> Any:
        """What a page holds."""
        by_size = chart(x_label="size of the file (KiB)", y_label="top-1 (%)", tooltips=TOOLTIPS)
        by_bits = chart(x_label="bits", y_label="top-1 (%)", tooltips=TOOLTIPS, x_range=self.settings)
        self._scatter(by_size, "kib")
        self._scatter(by_bits, "setting")
        return column(self.said, by_size, by_bits, self.table, sizing_mode="stretch_width")

    def update(self) -> None:
        """Read the file if it changed since."""
        try:
            state = self.path.stat()
        except FileNotFoundError:
            return
        if (state.st_mtime_ns, state.st_size) == self.seen:
            return
        self.seen = (state.st_mtime_ns, state.st_size)
        self.show(read_sweep(self.path))

    def show(self, results: pd.DataFrame) -> None:
        """Draw these rows."""
        points = tradeoff_points(results)
        kinds = {kind: str(min(i, MOST_KINDS - 1)) for i, kind in enumerate(dict.fromkeys(points["activations"]))}
        ordered = points.drop_duplicates("setting").sort_values(["bits", "setting"])
        self.settings.factors = [str(setting) for setting in ordered["setting"]]
        data: dict[str, Any] = {name: [None if value is pd.NA else value for value in points[name]] for name in DRAWN}
        self.source.data = data | {"kind": [kinds[kind] for kind in points["activations"]]}
        failed = int((results["error"] != "").sum())
        fp32 = f"; float32 {100 * points['fp32_top1'].iloc[-1]:.2f} %" if len(points) else ""
        said = f"<b>{escape(str(self.path))}</b>: {counted(len(results), 'row')}, {failed} failed{fp32}"
        self.said.text = f"{said}<br>{_legend(kinds)}"
        self.table.text = _newest(results)

    def _scatter(self, made: Chart, x: str) -> None:
        looks: dict[str, Style] = styles(str(i) for i in range(MOST_KINDS))
        for kind, style in looks.items():
            made.scatter(
                x, "percent", source=self.source, view=rows_where("kind", kind), size=9, marker=style.shape,
                color=style.colour, fill_alpha=0.75, nonselection_alpha=0.25,
            )  # fmt: skip


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((ADDRESS, 0))
        port: int = found.getsockname()[1]
        return port


def _legend(kinds: dict[Any, str]) -> str:
    """Which sign stands for which activations."""
    looks: dict[str, Style] = styles(str(i) for i in range(MOST_KINDS))
    signs = {kind: looks[number] for kind, number in kinds.items()}
    return " &ensp; ".join(
        f'<span style="color:{style.colour}">{SIGNS[style.shape]}</span> activations {escape(str(kind))}'
        for kind, style in signs.items()
    )


def _newest(results: pd.DataFrame) -> str:
    """The last rows as an HTML table, the newest first."""
    wanted = ("recipe", "seed", "top1", "weights", "activations", "seconds", "error")
    names = [name for name in wanted if name in results]
    rows = results[names].tail(SHOWN).iloc[::-1]
    write = [WRITTEN.get(name, str) for name in names]
    cells = [
        ["" if pd.isna(value) else escape(as_text(value)) for value, as_text in zip(row, write, strict=True)]
        for row in rows.astype(object).values
    ]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    spaced = "text-align:left; border-spacing:14px 2px; margin-left:-14px"
    return f'<table style="{spaced}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'

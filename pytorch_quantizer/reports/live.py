"""A sweep while it runs, in the browser: a bokeh server on this machine alone that reads results.csv as rows come.
The page of a finished one is report.py's.
"""

from __future__ import annotations

import socket
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
from pytorch_quantizer.reports.tradeoff import DRAWN, TOOLTIPS, tradeoff_points

ADDRESS, PORT = "127.0.0.1", 5006
EVERY_MS = 1000
RESULTS = "results.csv"
MOST_KINDS = 8  # of activations, each with a colour and a shape
SHOWN = 50  # of the table, the newest


def serve(source: Path, port: int = PORT) -> None:
    """Show a sweep's folder, or its results.csv, until Ctrl-C. Raises InputError where the port is taken."""
    server = start(source, port)
    print(f"http://{ADDRESS}:{server.port}/ shows {results_of(source)} as rows come; Ctrl-C ends it", flush=True)
    try:
        server.run_until_shutdown()
    finally:
        server.stop()


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
        self.said = Div(text="no rows yet", name="said")
        self.table = Div(text="", name="table")
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
        self.said.text = f"<b>{escape(str(self.path))}</b>: {len(results)} rows, {failed} failed{fp32}"
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


def _newest(results: pd.DataFrame) -> str:
    """The last rows as an HTML table, the newest first."""
    wanted = ("recipe", "weights", "activations", "seed", "top1", "seconds", "error")
    names = [name for name in wanted if name in results]
    rows = results[names].tail(SHOWN).iloc[::-1]
    cells = [[("" if pd.isna(value) else escape(str(value))) for value in row] for row in rows.values]
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    return f"<table style='text-align:left'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

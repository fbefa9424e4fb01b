"""The page of a sweep: bytes, and seconds until all its charts are drawn in Chromium; requests and complaints, too.

  python benchmarks/report_bars.py results/sweep_cifar10 --json benchmarks/results/report_bars.json

SOURCE is what `pq report` takes. Chromium opens the file afresh for each repeat, with an empty cache. Needs playwright
and Chromium (its path: --chromium).
"""

import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import jsonargparse

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.command_line import HelpFormatter, run
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.reports.report import write_report_page
from pytorch_quantizer.reports.sources import Material, read_material

MOST_BYTES, MOST_SECONDS = 5 * 2**20, 2.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def main() -> int:
    """Write the page, open it, print what was measured; 1 where a bar is broken."""
    flags = parser().parse_args()
    material = read_material(flags.sources)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        size = write_report_page(path, material)
        opened = open_page(path, flags.chromium, flags.repeats)
    found = {"points": points_of(material), "bytes": size, **opened, **provenance("cpu", "bokeh", "playwright")}
    bars = {
        f"at most {MOST_BYTES / 2**20:.0f} MiB": size <= MOST_BYTES,
        f"drawn within {MOST_SECONDS:.0f} s": found["seconds_median"] <= MOST_SECONDS,
        "no network request": not found["requests"],
        "no console error": not found["complaints"],
    }
    print(f"{found['points']} points, {size / 2**20:.2f} MiB")
    spread = f"median of {flags.repeats}; longest {found['seconds_longest']:.2f}"
    print(f"drawn after {found['seconds_median']:.2f} s ({spread})")
    print("\n".join(f"{'kept  ' if kept else 'BROKEN'} {bar}" for bar, kept in bars.items()))
    if flags.json:
        text = json.dumps(found | {"bars": bars}, indent=2)
        write_atomically(flags.json, f"{text}\n".encode())
    return int(not all(bars.values()))


def parser() -> jsonargparse.ArgumentParser:
    """The flags."""
    made = jsonargparse.ArgumentParser(
        prog="report_bars.py", description=__doc__, formatter_class=HelpFormatter, exit_on_error=False
    )
    made.add_argument("sources", nargs="+", type=Path, help="folders and files that a page is made of")
    made.add_argument("--repeats", type=int, default=7, help="how often the page is opened")
    made.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    made.add_argument("--json", type=Path, help="write what was measured there")
    return made


def points_of(material: Material) -> int:
    """Points of sweeps, and runs."""
    return sum(len(table.rows) for table in material.sweeps) + len(material.runs)


def open_page(path: Path, chromium: str | None, repeats: int) -> dict[str, object]:
    """Seconds from asking for the page to its last chart, and what it asked the network for and complained of."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise InputError("playwright is missing: pip install playwright") from error
    if chromium is None:
        raise InputError("--chromium: there is none on the path; give the browser's path")
    seconds, requests, complaints = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        version = browser.version
        for _ in range(repeats):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            page.on("request", lambda request: requests.append(request.url))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
            page.goto(path.as_uri())
            page.wait_for_function("document.documentElement.dataset.drawn")
            seconds.append(float(page.evaluate("document.documentElement.dataset.drawn")) / 1000)
            context.close()
        browser.close()
    return {
        "seconds": [round(value, 3) for value in seconds],
        "seconds_median": round(median(seconds), 3),
        "seconds_longest": round(max(seconds), 3),
        "requests": [url for url in requests if not url.startswith(("file:", "data:"))],
        "complaints": complaints,
        "browser": f"Chromium {version} on {platform.system()}",
    }


if __name__ == "__main__":
    run("report_bars.py", lambda: sys.exit(main()))

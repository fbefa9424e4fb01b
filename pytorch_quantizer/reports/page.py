"""A page: sections as one HTML file that holds all it needs, bokeh included, and asks no network for anything.
What is in the sections is their own files' business; page.css and page.js are its looks and its links.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from importlib import metadata
from importlib.resources import files
from typing import Any

from bokeh.embed import components
from bokeh.model import Model
from bokeh.resources import Resources

from pytorch_quantizer.reports.section import Drawing, Markup, Section

TALL = 700  # pixels; what is taller may be cut by the end of a printed page


def page(title: str, sections: Sequence[Section], *, opening: Markup | None = None) -> str:
    """The HTML of a page. opening: what stands between its title and the list of sections."""
    drawings = [part for section in sections for part in section.parts if isinstance(part, Drawing)]
    models: dict[str, Model] = {f"chart{i}": drawing.model for i, drawing in enumerate(drawings)}
    script, places = components(models) if models else ("", {})
    made = iter(places[name] for name in models)
    body = "".join(_section(section, i, made) for i, section in enumerate(sections))
    data = _for_script(_exchanged(sections) | {"charts": len(models)})
    folder = files(__package__)
    style, links = (folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    bokeh = Resources(mode="inline", components=["bokeh"]).render_js() if models else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="pytorch_quantizer {_version()}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{"" if opening is None else opening.html}
{_contents(sections)}
{body}
<footer>pytorch_quantizer {_version()}, {datetime.now(UTC):%d %B %Y}. Click a mark or a row to find it elsewhere on the
page; a click on a table's head sorts it.</footer>
</main>
<script type="application/json" id="report-data">{data}</script>
{bokeh}
{script}
<script>{links}</script>
</body>
</html>
"""


def _section(section: Section, number: int, places: Iterator[str]) -> str:
    parts: list[str] = []
    is_open = False
    for part in section.parts:
        if isinstance(part, Drawing) is not is_open:
            parts.append("</div>" if is_open else '<div class="figures">')
            is_open = not is_open
        parts.append(_figure(part, next(places)) if isinstance(part, Drawing) else part.html)
    parts.append("</div>" if is_open else "")
    lead = f"<p>{escape(section.lead)}</p>" if section.lead else ""
    return f'<section id="s{number}"><h2>{escape(section.title)}</h2>{lead}{"".join(parts)}</section>'


def _figure(drawing: Drawing, place: str) -> str:
    height = getattr(drawing.model, "height", None) or 0
    kinds = [name for name, holds in (("half", drawing.half), ("tall", height > TALL)) if holds]
    caption = f"<figcaption>{escape(drawing.caption)}</figcaption>" if drawing.caption else ""
    called = f' data-chart="{escape(drawing.called)}"' if drawing.called else ""
    hidden = " hidden" if drawing.hidden else ""
    return f'<figure class="{" ".join(kinds)}"{called}{hidden}>{place}{caption}</figure>'


def _contents(sections: Sequence[Section]) -> str:
    entries = [f'<li><a href="#s{i}">{escape(section.title)}</a></li>' for i, section in enumerate(sections)]
    return f"<nav><ul>{''.join(entries)}</ul></nav>" if len(entries) > 1 else ""


def _exchanged(sections: Sequence[Section]) -> dict[str, Any]:
    """What page.js is told."""
    return {
        "linked": [source.name for section in sections for source in section.linked],
        "related": {key: others for section in sections for key, others in section.related.items()},
        "exchanged": {key: entry for section in sections for key, entry in (section.exchanged or {}).items()},
    }


def _for_script(data: dict[str, Any]) -> str:
    """JSON that no text in it can end the element of."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _version() -> str:
    return metadata.version("pytorch-quantizer")

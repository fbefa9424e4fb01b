"""A section of a page: text, charts and tables, and what page.js needs to link and exchange them.
What sections there are is their own files' business, the page around them page.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource, LayoutDOM


@dataclass(frozen=True)
class Drawing:
    """A chart with a sentence under it. half: whether two such stand beside each other where there is room.

    called: a name by which page.js finds it. hidden: whether it is left out until page.js shows it.
    """

    model: LayoutDOM
    caption: str
    half: bool = False
    called: str = ""
    hidden: bool = False


@dataclass(frozen=True)
class Markup:
    """HTML whose texts are escaped already."""

    html: str


@dataclass(frozen=True)
class Section:
    """title, lead: plain text. parts: in order. linked: sources with a column ``key``, whose selections go together.

    related: keys that are marked along with a key. exchanged: what page.js puts into charts when a tensor is picked.
    """

    title: str
    lead: str = ""
    parts: Sequence[Drawing | Markup] = ()
    linked: Sequence[ColumnDataSource] = ()
    related: dict[str, list[str]] = field(default_factory=dict)
    exchanged: dict[str, Any] | None = None


def paragraph(text: str) -> Markup:
    """Plain text as a paragraph."""
    return Markup(f"<p>{escape(text)}</p>")

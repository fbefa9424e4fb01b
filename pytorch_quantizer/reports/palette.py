"""Colours that people who see colours differently tell apart, and shapes beside them.
Which of them stands for what is the sections' business.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

# Okabe & Ito (2008), without their yellow, which is too faint on white.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00"),
    *("#CC79A7", "#56B4E9", "#000000"),
)
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
SHAPES = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "plus")  # bokeh's names
GREY, PALE = "#6b6b6b", "#d9d9d9"
# From white to blue, evenly in lightness; and from blue over white to vermilion.
SHADES = ("#ffffff", "#e3eef6", "#c6ddec", "#a6cbe2", "#82b7d6", "#5aa2ca", "#2c8cbd", "#0072b2", "#005a8e", "#00426a")
DIVERGING = (*("#005a8e", "#3a86b5", "#7db1d1", "#bcd7e7", "#ffffff", "#f6d3bd", "#ebaa83", "#df7f47", "#b34e00"),)


class Style(NamedTuple):
    """A colour and a shape."""

    colour: str
    shape: str


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name, in order; no two of up to 56 are the same, and neighbours differ in both."""
    distinct = dict.fromkeys(names)
    return {
        name: Style(COLOURS[i % len(COLOURS)], SHAPES[(i % len(COLOURS) + i // len(COLOURS)) % len(SHAPES)])
        for i, name in enumerate(distinct)
    }

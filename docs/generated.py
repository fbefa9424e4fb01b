"""What mkdocs fills into pages from the code: commands' help, recipes and their fields, number types, columns.
A page says where by a comment, as `<!-- commands -->`; API entries are mkdocstrings' business.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest import mock

from mkdocs.exceptions import PluginError

import pq_command
from pytorch_quantizer.quantization.qtypes import NUMBER_TYPES
from pytorch_quantizer.quantization.recipe import Recipe, list_recipes
from pytorch_quantizer.sweeps.results import COLUMNS

LOADS = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>|url\(["']?https?://"""
)
WIDTH = "100"  # columns of a command's help


def commands() -> str:
    """A section a command: the help of its parser."""
    return "\n\n".join(f"## pq {name}\n\n```text\n{help_of(name)}\n```" for name in pq_command.available())


def help_of(name: str) -> str:
    """What `pq NAME --help` prints, at a fixed width."""
    module = importlib.import_module(f"{pq_command.PACKAGE}.commands.{pq_command.module_name(name)}")
    with mock.patch.dict(os.environ, {"COLUMNS": WIDTH}):
        text: str = module.parser().format_help()
    return text.rstrip()


def recipe_fields() -> str:
    """A row a field that a flag has: its default and what it means."""
    rows = (
        (f"`{field.name}`", f"`{plain(field.default)}`", field.metadata["help"])
        for field in fields(Recipe)
        if "help" in field.metadata
    )
    return table(("field", "default", "meaning"), rows)


def recipes() -> str:
    """A row a shipped recipe: what differs from the defaults."""
    return table(("recipe", "its fields"), ((f"`{name}`", settings(Recipe.load(name))) for name in list_recipes()))


def settings(recipe: Recipe) -> str:
    """The fields of a recipe that aren't the defaults."""
    entries = ((field.name, getattr(recipe, field.name), field.default) for field in fields(Recipe))
    changed = [(name, value) for name, value, default in entries if value != default and name != "name"]
    return ", ".join(f"`{name}: {plain(value)}`" for name, value in changed)


def number_types() -> str:
    """A row a number type: its name in recipes, its bits, its class."""
    rows = (
        (f"`{name}`", bits_of(kind), f"[{kind.__name__}][{kind.__module__}.{kind.__name__}]")
        for name, kind in NUMBER_TYPES.items()
    )
    return table(("name", "bits", "class"), rows)


def results_columns() -> str:
    """A row a column of results.csv: its type and what it says."""
    rows = ((f"`{name}`", kind, text or f"as `{name.removeprefix('fp32_')}`") for name, (kind, text) in COLUMNS.items())
    return table(("column of `results.csv`", "type", "meaning"), rows)


def bits_of(kind: Any) -> str:
    """The widths that a type comes in."""
    return str(kind.fixed_bits) if kind.fixed_bits else f"{kind.widths[0]} to {kind.widths[-1]}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def plain(value: Any) -> str:
    """A value as YAML writes it."""
    return json.dumps(value) if value is None or isinstance(value, bool) or value in ("", ()) else str(value)


FILLED: dict[str, Callable[[], str]] = {
    "commands": commands,
    "recipe fields": recipe_fields,
    "recipes": recipes,
    "number types": number_types,
    "results columns": results_columns,
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put in what a page's comments name. Raises KeyError for a name that isn't one of FILLED."""
    return re.sub(r"<!-- ([a-z ]+) -->", lambda found: FILLED[found[1]](), markdown)


def on_post_build(config: Any, **_: Any) -> None:
    """Stop the build where a page or style sheet would load something from the network."""
    for path in Path(config.site_dir).rglob("*"):
        if path.suffix in (".html", ".css") and (found := LOADS.search(path.read_text(encoding="utf-8"))):
            raise PluginError(f"{path} loads from the network: {found[0]}")

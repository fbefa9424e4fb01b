"""The API documentation names what exists, all that the package exports, every field and every command."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import pq_command
import pytorch_quantizer as pq
from pytorch_quantizer.quantization.qtypes import NUMBER_TYPES
from pytorch_quantizer.quantization.recipe import list_recipes
from pytorch_quantizer.sweeps.results import COLUMNS

mkdocs = pytest.importorskip("mkdocs.exceptions")
DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ENTRY = re.compile(r"^::: (\S+)$", re.MULTILINE)
REFERENCE = re.compile(r"\]\[(pytorch_quantizer[\w.]*)\]")


@pytest.fixture(scope="module")
def generated():
    spec = importlib.util.spec_from_file_location("docs_generated", DOCS / "generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def entries():
    return [name for page in PAGES for name in ENTRY.findall(page.read_text())]


def named(entry):
    """The object of a dotted name, None where there is none: a module is looked for before an attribute like it."""
    try:
        return importlib.import_module(entry)
    except ModuleNotFoundError:
        parent, _, name = entry.rpartition(".")
        return getattr(named(parent), name, None) if parent else None


def test_every_page_is_in_the_navigation():
    found = re.findall(r"[\w/]+\.md", (DOCS.parent / "mkdocs.yml").read_text())
    assert sorted(found) == [str(page.relative_to(DOCS)) for page in PAGES]


def test_every_entry_is_there_and_has_its_place_once(entries):
    assert [name for name in entries if named(name) is None] == []
    assert len(entries) == len(set(entries))


def test_all_that_the_package_exports_has_an_entry(entries):
    objects = {id(named(name)) for name in entries}
    modules = tuple(name for name in entries if type(named(name)).__name__ == "module")
    missing = []
    for name in pq.__all__:
        exported = getattr(pq, name)
        if id(exported) not in objects and not exported.__module__.startswith(modules):
            missing.append(name)
    assert missing == []


class TestGenerated:
    def test_every_field_with_its_default(self, generated):
        rows = generated.on_page_markdown("before\n<!-- recipe fields -->").splitlines()
        assert rows[0] == "before"
        listed = {row.split("|")[1].strip(): row for row in rows[3:]}
        assert set(listed) == {f"`{field.name}`" for field in fields(pq.Recipe) if "help" in field.metadata}
        assert "| `true` | admit only what integer kernels can run |" in listed["`deployable`"]
        assert "| `null` |" in listed["`residual`"]

    def test_a_recipes_row_is_the_recipe(self, generated):
        rows = generated.on_page_markdown("<!-- recipes -->").splitlines()[2:]
        assert len(rows) == len(list_recipes())
        for row in rows:
            name, settings = re.fullmatch(r"\| `(\w+)` \| (.*) \|", row).groups()
            given = "\n".join(re.findall(r"`([^`]+)`", settings))
            changed = yaml.safe_load(given) or {}
            assert pq.Recipe(name=name, **changed) == pq.Recipe.load(name)
            assert {field: value for field, value in changed.items() if getattr(pq.Recipe(), field) == value} == {}

    def test_every_column_of_a_sweep(self, generated):
        page = generated.on_page_markdown("<!-- results columns -->")
        assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(COLUMNS)
        assert "| `fp32_top5` | float64 | as `top5` |" in page

    def test_every_number_type(self, generated, entries):
        page = generated.on_page_markdown("<!-- number types -->")
        assert [name for name in NUMBER_TYPES if f"| `{name}` |" not in page] == []
        linked = REFERENCE.findall(page)
        assert len(linked) == len(NUMBER_TYPES)
        assert set(linked) <= set(entries)

    @pytest.mark.parametrize("name", pq_command.available())
    def test_every_commands_help(self, generated, name):
        text = generated.help_of(name)
        assert text.startswith("usage: ")
        assert "--help" in text
        assert str(Path.home()) not in text

    def test_a_name_that_is_none(self, generated):
        with pytest.raises(KeyError):
            generated.on_page_markdown("<!-- nothing -->")


class TestNetwork:
    @pytest.mark.parametrize(
        "loads",
        [
            '<script src="https://example.org/a.js"></script>',
            '<link rel="stylesheet" href="//example.org/a.css">',
            "<img src='http://example.org/a.png'>",
            "a { background: url(https://example.org/a.woff2) }",
        ],
    )
    def test_a_page_that_loads_from_it_stops_the_build(self, generated, tmp_path, loads):
        (tmp_path / "page.html").write_text(f"<html>{loads}</html>")
        with pytest.raises(mkdocs.PluginError, match="loads from the network"):
            generated.on_post_build(Site(tmp_path))

    def test_links_are_none(self, generated, tmp_path):
        (tmp_path / "page.html").write_text('<a href="https://example.org">x</a><script src="js/a.js"></script>')
        generated.on_post_build(Site(tmp_path))


class Site:
    def __init__(self, folder):
        self.site_dir = str(folder)

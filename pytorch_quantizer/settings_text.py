"""Text of settings that a person writes, YAML or JSON, as plain values, and such values as YAML that reads back equal.
What settings there are is the business of who asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

FLOAT = "tag:yaml.org,2002:float"
EXPONENT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$")  # a number of YAML 1.2 and of JSON


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 5e-3 and 1.5e3 are numbers; there they would be text."""


class _Dumper(yaml.SafeDumper):
    """Quotes the text that _Loader would read as a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(FLOAT, EXPONENT, list("-+.0123456789"))


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises yaml.YAMLError where a key stands twice."""
    _require_single((key, key, "") for key, _ in pairs)
    return dict(pairs)


def _require_single_keys(node: yaml.Node | None) -> None:
    """Raise yaml.YAMLError where a key of YAML stands twice, as written: what a merge brings may be set anew."""
    left, seen = [node], set()
    while left:
        node = left.pop()
        if isinstance(node, yaml.CollectionNode) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, yaml.MappingNode):
                keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                _require_single(((key.tag, key.value), key.value, f" (line {key.start_mark.line + 1})") for key in keys)
                left += [value for _, value in node.value]
            else:
                left += node.value


def _require_single(keys: Iterable[tuple[Any, str, str]]) -> None:
    """Raise yaml.YAMLError where one stands twice; comments may as often as one likes. keys: (key, as text, where)."""
    seen = set()
    for key, text, where in keys:
        if key in seen and not text.startswith("_"):
            raise yaml.YAMLError(f"the key {text} stands twice{where}: leave one of them out")
        seen.add(key)


def load_settings(text: str) -> Any:
    """What a text says: JSON where it is an object or a list in JSON, which may be indented by tabs, else YAML.

    Raises yaml.YAMLError where it is neither, and where a key that is no comment ('_' first) stands twice.
    """
    text = text.removeprefix("\ufeff")
    if text.lstrip().startswith(("{", "[")):
        try:
            return json.loads(text, object_pairs_hook=_pairs)
        except ValueError:
            pass  # YAML's flow style begins so, too
    try:
        _require_single_keys(yaml.compose(text, _Loader))
        return yaml.load(text, _Loader)
    except ValueError as error:  # of a date that is none, say
        raise yaml.YAMLError(str(error)) from error


def load_commented_yaml(text: str) -> Any:
    """``load_settings`` without the keys that start with '_': those are comments."""
    return without_comments(load_settings(text))


def without_comments(value: Any) -> Any:
    """Plain values without keys that begin with an underscore, such as _comment, at any depth."""
    if isinstance(value, dict):
        return {key: without_comments(inner) for key, inner in value.items() if not str(key).startswith("_")}
    return [without_comments(inner) for inner in value] if isinstance(value, list) else value


def dump_settings(values: Any) -> str:
    """Plain values as YAML, mappings in their own order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)

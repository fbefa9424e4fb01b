"""What graphs and settings hold, as JSON can hold it, and back: tuples, slices, nodes, dtypes, infinities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from pytorch_quantizer.errors import InputError

Description = dict[str, Any]
SPECIAL = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def encode(value: Any) -> Any:
    """As JSON can hold it; what JSON has no word for is an object with one entry, which says what it is."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [encode(entry) for entry in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(entry) for entry in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(entry)] for key, entry in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if value is Ellipsis:
        return {"ellipsis": True}
    raise InputError(f"a graph holds {value!r} ({type(value).__name__}), which no file can describe")


def decode(value: Any, nodes: Mapping[str, fx.Node] | None = None) -> Any:
    """What ``encode`` was given. nodes: those that it may name. Raises InputError, KeyError for what is damaged."""
    nodes = nodes or {}
    if isinstance(value, list):
        return [decode(entry, nodes) for entry in value]
    if not isinstance(value, dict):
        return value
    (kind, content), *more = value.items()
    if more:
        raise InputError(f"the file's graph holds an object of {len(value)} entries, {list(value)[:3]}: it is damaged")
    return _DECODERS[kind](content, nodes)


def _dtype(name: str, nodes: Mapping[str, fx.Node]) -> torch.dtype:
    found = getattr(torch, name)
    if not isinstance(found, torch.dtype):
        raise InputError(f"the file's graph holds a dtype {name!r}, which torch has not")
    return found


_DECODERS: dict[str, Callable[[Any, Mapping[str, fx.Node]], Any]] = {
    "node": lambda name, nodes: nodes[name],
    "float": lambda name, nodes: SPECIAL[name],
    "tuple": lambda entries, nodes: tuple(decode(entry, nodes) for entry in entries),
    "dict": lambda entries, nodes: {decode(key, nodes): decode(entry, nodes) for key, entry in entries},
    "slice": lambda parts, nodes: slice(*(decode(part, nodes) for part in parts)),
    "dtype": _dtype,
    "ellipsis": lambda _, nodes: Ellipsis,
}

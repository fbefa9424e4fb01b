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
MOST_LEVELS = 16  # of values inside values: the arguments of real networks have three
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}


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


def decode(value: Any, nodes: Mapping[str, fx.Node] | None = None, *, level: int = 0) -> Any:
    """What ``encode`` was given. nodes: those that it may name. Raises InputError, KeyError for what is damaged."""
    if level > MOST_LEVELS:
        raise InputError(f"the file holds values inside values more than {MOST_LEVELS} levels deep: it is damaged")
    if isinstance(value, list):
        return [decode(entry, nodes, level=level + 1) for entry in value]
    if not isinstance(value, dict):
        return value
    (kind, content), *more = value.items()
    if more:
        raise InputError(f"the file's graph holds an object of {len(value)} entries, {list(value)[:3]}: it is damaged")
    if kind == "node":
        return _node(content, nodes or {})
    return _DECODERS[kind](content, lambda entry: decode(entry, nodes, level=level + 1))


def _node(name: str, nodes: Mapping[str, fx.Node]) -> fx.Node:
    if name not in nodes:
        raise InputError(f"the file's graph reads {name!r} before there is one: it is damaged")
    return nodes[name]


_Decode = Callable[[Any], Any]
_DECODERS: dict[str, Callable[[Any, _Decode], Any]] = {
    "float": lambda name, _: SPECIAL[name],
    "tuple": lambda entries, inner: tuple(map(inner, entries)),
    "dict": lambda entries, inner: {inner(key): inner(entry) for key, entry in entries},
    "slice": lambda parts, inner: slice(*map(inner, parts)),
    "dtype": lambda name, _: DTYPES[name],
    "ellipsis": lambda *_: Ellipsis,
}

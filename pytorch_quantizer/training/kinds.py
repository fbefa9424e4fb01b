"""Whether settings are of the kinds that their annotations name, whoever gave them: a file, a flag or a program.
What values they may have beyond that is config.py's.
"""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from pytorch_quantizer.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SAID = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    NoneType: "null",
}


def check_kinds(settings: DataclassInstance, prefix: str = "") -> None:
    """Raise InputError for a field that isn't of its annotation's kind; prefix: what stands before its name.

    A whole number is a number, true and false are none, numbers are finite, and only what may be None is.
    """
    for name, hint in get_type_hints(type(settings)).items():
        kinds, value = get_args(hint) or (hint,), getattr(settings, name)
        if not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(SAID.get(kind, kind.__name__) for kind in kinds)
            raise InputError(f"{prefix}{name} must be {wanted}, got {value!r}")


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool) and _finite(value)
    return isinstance(value, (str, os.PathLike) if kind in (str, Path) else kind)


def _finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False

"""A parser whose complaints are one line that names the flag, the rule, the value and the remedy.
Flags made from dataclasses are command_line.py's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NoReturn

import jsonargparse

from pytorch_quantizer.errors import InputError

KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null"}


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's; what it complains of is an InputError."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise InputError."""
        raise InputError(
            complaint(message, (flag for action in self._actions for flag in action.option_strings))
        ) from ex


def complaint(message: str, flags: Iterable[str]) -> str:
    """What jsonargparse says in the words of this project, where it can be said better; flags: those that there are."""
    text = " ".join(message.split())
    if found := re.fullmatch(r"unrecognized arguments: ((--?[^\s=]+).*)", text):
        given = {flag.replace("_", "-"): flag for flag in flags}
        close = difflib.get_close_matches(found[2].replace("_", "-"), given, 1)
        return f"unknown flag {found[1]}: {f'did you mean {close[0]}?' if close else 'see --help'}"
    key = re.search(r'.*Parser key "([^"]+)"', text)  # the last: of a group's setting, not the group
    value = re.search(r"Given value:(.*)$", text) or re.search(r"Got value:(.*)$", text)
    kinds = re.findall(r"Expected (?:a )?<class '(\w+)'>", text)
    if key and value and kinds and set(kinds) <= KINDS.keys():
        rule = " or ".join(KINDS[kind] for kind in kinds if kind != "NoneType" or len(kinds) == 1)
        return f"--{key[1].replace('_', '-')} must be {rule}, got {value[1].strip()!r}"
    return text

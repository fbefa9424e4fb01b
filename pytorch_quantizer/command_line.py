"""What every script shares: flags made from dataclass fields, and a user's mistake as one line and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import jsonargparse

from pytorch_quantizer.errors import InputError


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Types and defaults beside each flag; the description as it is written."""


def add_flags(parser: jsonargparse.ArgumentParser, dataclass: type, title: str, *, optional: bool = False) -> None:
    """One flag a field with ``metadata["help"]``: ``weight_clip`` is ``--weight-clip``; what is False needs no value.

    optional: the default is None, which means 'not given'.
    """
    group = parser.add_argument_group(title)
    hints = get_type_hints(dataclass)
    for field in fields(dataclass):
        if "help" not in field.metadata:
            continue
        flag, text = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        hint, default = hints[field.name], None if field.default is MISSING else field.default
        if default is False and not optional:
            group.add_argument(flag, action="store_true", help=text)
        else:
            typed = hint | None if optional else hint
            group.add_argument(flag, type=typed, default=None if optional else default, help=text)


def run(script: str, main: Callable[[], Any]) -> None:
    """Run a script's main; a mistake in what was given is one line on stderr and exit code 2, a bug its traceback."""
    try:
        main()
    except (InputError, argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        print(f"{script}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)

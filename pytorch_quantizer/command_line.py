"""What every script shares: flags made from dataclass fields, and a user's mistake as one line and exit code 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import jsonargparse

from pytorch_quantizer.errors import InputError

INTERRUPTED = 130  # the exit code of what Ctrl-C stops: 128 + SIGINT


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A flag's default beside it, where there is one; the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        silent = default is None or default is False or default == argparse.SUPPRESS or "default:" in text
        return text if silent else f"{text} (default: {action.default})"


def add_flags(parser: jsonargparse.ArgumentParser, dataclass: type, title: str, *, optional: bool = False) -> None:
    """One flag a field with ``metadata["help"]``: ``weight_clip`` is ``--weight-clip``.

    A switch that is False needs no value. optional: what isn't given is absent from what is parsed; a switch may then
    be given as ``--flag`` or ``--flag false``.
    """
    group = parser.add_argument_group(title)
    hints = get_type_hints(dataclass)
    for field in fields(dataclass):
        if "help" not in field.metadata:
            continue
        flag, text = f"--{field.name.replace('_', '-')}", field.metadata["help"]
        hint, default = hints[field.name], None if field.default is MISSING else field.default
        default = argparse.SUPPRESS if optional else default
        if default is False and not optional:
            group.add_argument(flag, action="store_true", help=text)
        elif hint is bool:
            group.add_argument(flag, type=bool, nargs="?", const=True, default=default, metavar="true|false", help=text)
        else:
            group.add_argument(flag, type=hint, default=default, help=text)


def run(script: str, main: Callable[[], Any]) -> None:
    """Run a script's main; a user's mistake, or Ctrl-C, is one line on stderr and an exit code, a bug its traceback."""
    try:
        main()
    except (InputError, argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        print(f"{script}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{script}: interrupted; what a script keeps for another run is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)

"""What every command line shares: flags made from dataclass fields, and a user's mistake as one line and exit code 2.
The commands themselves are in commands/; which of them `pq` runs is pq_command.py's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import jsonargparse

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.flag_parser import Parser
from pytorch_quantizer.ranks import is_one_of_several
from pytorch_quantizer.user_warnings import plain_warnings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Given = TypeVar("Given", bound="DataclassInstance")
SHARED = ("run_inference.py", "pq run")  # what torchrun may start in several processes
INTERRUPTED = 130  # the exit code of what Ctrl-C stops: 128 + SIGINT


class HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A flag's default beside it, where there is one; the description as it is written."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        silent = default is None or default is False or default == argparse.SUPPRESS or "default:" in text
        return text if silent else f"{text} (default: {action.default})"


def command_parser(
    name: str, description: str | None, usage: str = "[flags]", *, program: str | None = None
) -> jsonargparse.ArgumentParser:
    """A parser of ``pq NAME``, or of ``program``, without flags yet; a mistake in them raises InputError."""
    program = program or f"pq {name}"
    return Parser(
        prog=program,
        usage=f"{program} {usage}",
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )


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


def from_flags(dataclass: type[Given], flags: Mapping[str, Any]) -> Given:
    """A dataclass of what was parsed: each of its fields that has a flag."""
    return dataclass(**{field.name: flags[field.name] for field in fields(dataclass) if field.name in flags})


def run(script: str, main: Callable[[], int | None]) -> None:
    """Run a command's main and exit with the code it returns, if any.

    A user's mistake, or Ctrl-C, is one line on stderr and an exit code, a bug its traceback; a warning one line, too.
    """
    try:
        if is_one_of_several() and script not in SHARED:
            raise InputError("this command runs in one process: start it without torchrun")
        with plain_warnings():
            code = main()
        if code:
            sys.exit(code)
    except (InputError, argparse.ArgumentError, jsonargparse.ArgumentError) as error:
        print(f"{script}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        said = "interrupted; what it had finished and keeps for another run is kept, the rest is not"
        print(f"{script}: {said}", file=sys.stderr)
        sys.exit(INTERRUPTED)

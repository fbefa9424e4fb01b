"""The console command `pq`: names the commands, and hands what follows to the module that does it.
It lies outside the package, and reads descriptions without importing it, so that `pq --help` needn't wait for torch.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

PACKAGE = "pytorch_quantizer"
BROKEN_PIPE = 141  # the exit code of what SIGPIPE ends: 128 + SIGPIPE
COMMANDS = (
    *("run", "sweep", "report", "export", "bench", "train"),
    *("sensitivity", "compare", "ablation", "leaderboard", "merge-statistics"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, with the others; exits with its code, or 2 for another name."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        try:
            dispatch(name, rest)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, as in `pq run --help | head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)


def dispatch(name: str, arguments: Sequence[str]) -> None:
    """What `pq NAME ARGUMENTS` does."""
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"pq {metadata.version('pytorch-quantizer')}")
    elif name in available():
        start(name, arguments)
    else:
        print(complaint(name), file=sys.stderr)
        sys.exit(2)


def start(name: str, arguments: Sequence[str]) -> None:
    """Import the command's module and run it; a user's mistake is one line and exit code 2."""

    def command() -> int | None:
        module = importlib.import_module(f"{PACKAGE}.commands.{module_name(name)}")
        code: int | None = module.main(list(arguments))
        return code

    try:
        from pytorch_quantizer.command_line import run  # with it comes torch
    except KeyboardInterrupt:
        sys.exit(130)
    run(f"pq {name}", command)


def usage() -> str:
    """What `pq --help` says: each command with what its module says first."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {description(path)}" for name, path in available().items()]
    return "\n".join(
        [
            "usage: pq COMMAND [flags]",
            "",
            "Quantization research on PyTorch vision models.",
            "",
            *lines,
            "",
            "pq COMMAND --help tells a command's flags, pq --version the version.",
        ]
    )


def complaint(name: str) -> str:
    """One line for a name that is no command's, with the closest one."""
    if not name:
        return f"pq: error: give a command: {', '.join(available())}"
    close = difflib.get_close_matches(name.replace("_", "-"), available(), 1)
    return f"pq: error: unknown command {name!r}: " + (
        f"did you mean {close[0]!r}?" if close else f"it must be one of {', '.join(available())}"
    )


def available() -> dict[str, Path]:
    """The commands' modules by the commands' names, without importing them."""
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None
    assert found.submodule_search_locations is not None
    folder = Path(found.submodule_search_locations[0]) / "commands"
    paths = {name: folder / f"{module_name(name)}.py" for name in COMMANDS}
    return {name: path for name, path in paths.items() if path.is_file()}


def module_name(name: str) -> str:
    """`merge-statistics` is in merge_statistics.py."""
    return name.replace("-", "_")


def description(path: Path) -> str:
    """What a module's docstring begins with, up to its first stop, read and not run."""
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[?])\s|[.:;](?=\s|$)", said, maxsplit=1)[0].replace("\n", " ")


if __name__ == "__main__":
    main()

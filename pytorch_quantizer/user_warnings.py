"""The one kind of warning that this package gives: it names the user's own line, and on commands it is one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from tqdm import tqdm

PACKAGE = str(Path(__file__).parent)


class QuantizerWarning(UserWarning):
    """Something was done otherwise than a user would expect: how, in one sentence, and what helps."""


def warn_user(sentence: str) -> None:
    """Warn at the nearest caller outside this package; Python shows a sentence once for each such line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and (_imports(frame) or frame.f_code.co_filename.startswith(PACKAGE)):
        level += not _imports(frame)
        frame = frame.f_back
    warnings.warn(sentence, QuantizerWarning, stacklevel=level)


def _imports(frame: FrameType) -> bool:
    """Whether a frame is of Python's own import, which a stacklevel doesn't count."""
    return frame.f_code.co_filename.startswith("<frozen importlib")


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show QuantizerWarnings as ``warning: …``, one line on stderr, for commands and their processes; others as ever.

    What is warned of, and how often, remains the filters' to say. On leaving warnings look as they did before.
    """
    usual = warnings.showwarning

    def shown(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, QuantizerWarning):
            tqdm.write(f"warning: {' '.join(str(message).split())}", file=sys.stderr)  # above a bar, not in it
        else:
            usual(message, category, filename, lineno, file, line)

    warnings.showwarning = shown
    try:
        yield
    finally:
        warnings.showwarning = usual

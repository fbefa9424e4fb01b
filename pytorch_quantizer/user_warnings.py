"""The one kind of warning that this package gives. It names the user's own line, however deep its cause lies."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).parent)


class QuantizerWarning(UserWarning):
    """Something was done otherwise than a user would expect: how, in one sentence, and what helps."""


def warn_user(sentence: str) -> None:
    """Warn at the nearest caller outside this package; Python shows a sentence once for each such line."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, QuantizerWarning, stacklevel=level)

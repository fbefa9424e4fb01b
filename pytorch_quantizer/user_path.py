"""A path as a user writes it."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(path: str | Path) -> Path:
    """The path with ``~`` filled in; where there is no such home as it stands, as a shell has it."""
    return Path(os.path.expanduser(path))

"""Where tests find real data: $PQ_DATA, or ../shared/data from the project's root. Absent data skips a test by name."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("PQ_DATA") or Path(__file__).parents[2] / "shared" / "data")


def real_data(path: str) -> Path:
    """Give the path of a file or folder of real data, or skip the test."""
    if not (ROOT / path).exists():
        pytest.skip(f"real data absent: {path} (set PQ_DATA)")
    return ROOT / path

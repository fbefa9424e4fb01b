"""--report FILE: the page that `pq report` makes of what a command wrote, by the command itself.
What is on the page is reports/' business.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jsonargparse

from pytorch_quantizer.atomic import require_writable


def add_report_flag(parser: jsonargparse.ArgumentParser) -> None:
    """Add --report."""
    parser.add_argument("--report", type=Path, help="write what was measured as one HTML page there (`pq report`)")


def take_report_flag(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """(the other arguments, --report's path), for a command whose flags are all settings of what it does."""
    made = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    made.add_argument("--report", type=Path)
    found, others = made.parse_known_args(arguments)
    return others, found.report


def check_report(path: Path | None) -> None:
    """Raise InputError now where ``write_report_of`` would after the work."""
    if path is not None:
        require_writable(path)


def write_report_of(path: Path | None, source: Path) -> None:
    """Write the page of a folder or file, if one was asked for, and say so."""
    if path is not None:
        from pytorch_quantizer.reports.report import write_report_page
        from pytorch_quantizer.reports.sources import read_material

        size = write_report_page(path, read_material([source]))
        print(f"wrote {path}: {size / 2**20:.1f} MiB, opens without a network")

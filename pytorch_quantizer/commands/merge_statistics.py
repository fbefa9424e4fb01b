"""Merge statistics files of several runs into one, as if one run had seen all their images.

  pq run --seed 0 --statistics-file first.json ...
  pq run --seed 1 --statistics-file second.json ...
  pq merge-statistics --output both.json first.json second.json
      the same network, the same recipe; both.json is what --statistics-file then reads

Merged in the order given: counts, ends and histograms exactly, sums to rounding. An image of two runs counts twice.
"""

from pathlib import Path

import jsonargparse

from pytorch_quantizer.calibration.statistics_file import counted_images, merge_statistics_files
from pytorch_quantizer.command_line import command_parser


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, write the merged file, say on how many images it is."""
    flags = parser().parse_args(arguments)
    merge_statistics_files(flags.output, *flags.files)
    images = counted_images(flags.output)
    print(f"wrote {flags.output}: {'an unknown number of' if images is None else images} images")


def parser() -> jsonargparse.ArgumentParser:
    """Where to, and what to merge."""
    made = command_parser("merge-statistics", __doc__, usage="--output FILE FILE [FILE ...]")
    made.add_argument("files", type=Path, nargs="+", help="statistics files, as `pq run --statistics-file` writes them")
    made.add_argument("--output", type=Path, required=True, help="the file to write")
    return made

"""Merge statistics files of several runs: `pq merge-statistics`, see pytorch_quantizer/commands/merge_statistics.py."""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands.merge_statistics import main

if __name__ == "__main__":
    run("merge_statistics.py", main)

"""A grid of points into one table: `pq sweep`, see pytorch_quantizer/commands/sweep.py."""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands.sweep import main

if __name__ == "__main__":
    run("sweep.py", main)

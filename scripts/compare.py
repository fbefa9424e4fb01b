"""Simulation and integers compared: `pq compare`, see pytorch_quantizer/commands/compare.py."""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands.compare import main

if __name__ == "__main__":
    run("compare.py", main)

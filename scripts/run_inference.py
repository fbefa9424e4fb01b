"""Quantize a trained network and measure what it costs: `pq run`, see pytorch_quantizer/commands/run.py."""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands.run import main

if __name__ == "__main__":
    run("run_inference.py", main)

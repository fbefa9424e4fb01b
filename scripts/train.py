"""Train a network, float or quantized: `pq train`, see pytorch_quantizer/commands/train.py."""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands.train import main

if __name__ == "__main__":
    run("train.py", main)

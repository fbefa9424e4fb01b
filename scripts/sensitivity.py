"""Which layer does quantization hurt: `pq sensitivity`, see pytorch_quantizer/commands/sensitivity.py."""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands.sensitivity import main

if __name__ == "__main__":
    run("sensitivity.py", main)

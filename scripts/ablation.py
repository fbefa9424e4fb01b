"""Which ingredient of ACIQ did what: `pq ablation`, see pytorch_quantizer/commands/ablation.py."""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands.ablation import main

if __name__ == "__main__":
    run("ablation.py", main)

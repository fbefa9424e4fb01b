"""One HTML file that shows what was measured: `pq report`, see pytorch_quantizer/commands/report.py."""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands.report import main

if __name__ == "__main__":
    run("report.py", main)

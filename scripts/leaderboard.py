"""Every method at every width as a table: `pq leaderboard`, see pytorch_quantizer/commands/leaderboard.py."""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.commands.leaderboard import main

if __name__ == "__main__":
    run("leaderboard.py", main)

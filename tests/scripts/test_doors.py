"""scripts/*.py are doors to commands: the same functions, nothing of their own."""

import importlib
import subprocess
import sys

import pytest
from script_runs import SCRIPTS, load_script

DOORS = sorted(path.stem for path in SCRIPTS.glob("*.py") if path.stem != "read_checkpoint")
COMMAND = {"run_inference": "run"}


@pytest.mark.parametrize("name", DOORS)
def test_a_door_and_nothing_else(name):
    command = importlib.import_module(f"pytorch_quantizer.commands.{COMMAND.get(name, name)}")
    assert load_script(name).main is command.main
    assert len((SCRIPTS / f"{name}.py").read_text().splitlines()) <= 10


def test_a_mistake_names_the_script():
    command = [sys.executable, SCRIPTS / "merge_statistics.py", "--output", "x"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 2
    assert made.stderr.startswith("merge_statistics.py: error: ")
    assert made.stderr.count("\n") == 1

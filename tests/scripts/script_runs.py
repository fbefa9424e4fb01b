"""Scripts as modules, and what they say of a user's mistake."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pytorch_quantizer.command_line import run

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load_script(name: str) -> ModuleType:
    """scripts/NAME.py as a module, with its folder on the path as when it is run."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


def failing_line(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a script on a mistake: exit code 2 and exactly one line on stderr, which is returned."""
    with pytest.raises(SystemExit) as stopped:
        run(Path(script.__file__).name, lambda: script.main([str(a) for a in arguments]))
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]

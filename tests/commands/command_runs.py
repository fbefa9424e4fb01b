"""Commands as `pq` runs them, and what they say of a user's mistake."""

from types import ModuleType

import pytest

import pq_command


def name_of(command: ModuleType) -> str:
    """What comes behind pq."""
    return command.__name__.rpartition(".")[2].replace("_", "-")


def failing_line(command: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command on a mistake: exit code 2 and exactly one line on stderr, which is returned."""
    with pytest.raises(SystemExit) as stopped:
        pq_command.main([name_of(command), *map(str, arguments)])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"pq {name_of(command)}: error: ")
    return lines[0]

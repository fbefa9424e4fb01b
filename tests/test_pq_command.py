"""`pq`: lists its commands without loading torch, hands on to one, and names the closest where there is none."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import pq_command
import pytorch_quantizer
from pytorch_quantizer import InputError
from pytorch_quantizer.commands import run as run_module

FOLDER = Path(pytorch_quantizer.__file__).parent / "commands"


def outcome(*arguments):
    """The exit code of pq with these arguments, 0 where main returned."""
    try:
        pq_command.main(arguments)
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


class TestHelp:
    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_a_line_a_command(self, capsys, flag):
        assert outcome(flag) == 0
        lines = capsys.readouterr().out.splitlines()
        listed = {line.split()[0]: line for line in lines if line.startswith("  ")}
        modules = {path.stem for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text()}
        assert set(listed) == {name.replace("_", "-") for name in modules}
        assert listed["run"].endswith(
            "Quantize a trained network without retraining and measure what it costs, on real images"
        )
        assert all(len(line) <= 120 for line in lines)

    def test_neither_it_nor_the_version_loads_torch(self):
        code = (
            "import pq_command, sys; pq_command.main([sys.argv[1]]); assert not {'torch', 'numpy'} & set(sys.modules)"
        )
        for flag in ("--help", "--version"):
            subprocess.run([sys.executable, "-c", code, flag], check=True, capture_output=True)

    def test_a_command_loads_what_takes_a_second_where_it_is_used_alone(self):
        modules = [f"pytorch_quantizer.commands.{name.replace('-', '_')}" for name in pq_command.COMMANDS]
        modules.remove("pytorch_quantizer.commands.report")  # which is there for bokeh's charts
        code = f"import {', '.join(modules)}, sys; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert not {"bokeh", "sklearn", "scipy.stats"} & set(done.stdout.split())

    def test_version(self, capsys):
        assert outcome("--version") == 0
        assert capsys.readouterr().out.startswith("pq 0.")

    def test_a_command_that_is_not_there_is_not_listed(self, capsys, monkeypatch):
        monkeypatch.setattr(pq_command, "COMMANDS", ("run", "nothing"))
        assert outcome("--help") == 0
        assert "nothing" not in capsys.readouterr().out
        assert outcome("nothing") == 2

    def test_a_reader_that_has_had_enough_is_no_mistake(self):
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "pq_command", "--help"]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        made = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=buffered, check=False)
        os.close(writing)
        assert (made.returncode, made.stderr) == (141, b"")


def test_the_installed_command_is_this_one():
    [installed] = metadata.entry_points(group="console_scripts", name="pq")
    assert installed.load() is pq_command.main


class TestMistakes:
    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("lederboard", "unknown command 'lederboard': did you mean 'leaderboard'?"),
            ("merge_statistics", "did you mean 'merge-statistics'?"),
            ("zzz", "unknown command 'zzz': it must be one of run, "),
            ("", "give a command: run, "),
        ],
    )
    def test_one_line_and_exit_code_2(self, capsys, name, said):
        assert outcome(*[name] * bool(name)) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert printed.err.startswith("pq: error: ")
        assert said in printed.err


class TestHandingOn:
    @pytest.fixture
    def given(self, monkeypatch):
        """What a command is given, and what it is to do about it: return that, or raise it."""
        seen = {"does": None}

        def main(arguments):
            seen["arguments"] = arguments
            if isinstance(seen["does"], BaseException):
                raise seen["does"]
            return seen["does"]

        monkeypatch.setattr(run_module, "main", main)
        return seen

    def test_the_other_arguments_go_along(self, given):
        assert outcome("run", "--data", "DIR", "--help") == 0
        assert given["arguments"] == ["--data", "DIR", "--help"]

    @pytest.mark.parametrize(
        ("does", "code"), [(None, 0), (0, 0), (1, 1), (InputError("a: rule"), 2), (KeyboardInterrupt(), 130)]
    )
    def test_exit_codes(self, given, does, code):
        given["does"] = does
        assert outcome("run") == code

    def test_a_mistake_names_the_command(self, given, capsys):
        given["does"] = InputError("a: rule,\n got b")
        outcome("run")
        assert capsys.readouterr().err == "pq run: error: a: rule, got b\n"

    def test_a_bug_keeps_its_traceback(self, given):
        given["does"] = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            pq_command.main(["run"])

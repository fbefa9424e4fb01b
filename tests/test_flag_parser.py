"""What a command line complains of: one line that names the flag, the rule, the value and the remedy."""

from dataclasses import dataclass, field

import pytest

from pytorch_quantizer import InputError
from pytorch_quantizer.command_line import add_flags, command_parser
from pytorch_quantizer.training.flags import parse_training


def _flag(default):
    return field(default=default, metadata={"help": ""})


@dataclass
class Flags:
    jobs: int | None = _flag(None)
    budget: float = _flag(1.0)
    wide_residual: bool = _flag(True)


@pytest.fixture
def parser():
    made = command_parser("some", "")
    add_flags(made, Flags, "")
    return made


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--jobs two", "--jobs must be a whole number, got 'two'"),
        ("--jobs 1.5", "--jobs must be a whole number, got '1.5'"),
        ("--jobs a", "--jobs must be a whole number, got 'a'"),
        ("--jobs 1e3", "--jobs must be a whole number, got '1e3'"),
        ("--jobs=", "--jobs must be a whole number, got ''"),
        ("--budget much", "--budget must be a number, got 'much'"),
        ("--wide-residual maybe", "--wide-residual must be true or false, got 'maybe'"),
        ("--jbos 2", "unknown flag --jbos 2: did you mean --jobs?"),
        ("--wide_residual=false", "unknown flag --wide_residual=false: did you mean --wide-residual?"),
        ("--zzz", "unknown flag --zzz: see --help"),
        ("stray", "unrecognized arguments: stray"),
        ("--jobs", "argument --jobs: expected one argument"),
    ],
)
def test_mistakes(parser, given, said):
    with pytest.raises(InputError) as raised:
        parser.parse_args(given.split())
    assert str(raised.value) == said


def test_what_is_right_stays_right(parser):
    found = parser.parse_args(["--jobs", "null", "--budget", "2", "--wide-residual", "false"])
    assert (found.jobs, found.budget, found.wide_residual) == (None, 2.0, False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--epoch 3", "unknown flag --epoch 3: did you mean --epochs?"),
        ("--epochs x", "--epochs must be a whole number"),
    ],
)
def test_training_says_it_so_too(given, said):
    with pytest.raises(InputError) as raised:
        parse_training(given.split())
    assert said in str(raised.value)

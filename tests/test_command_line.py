"""What every command shares: this package's warnings are a line each, and Python's users see them as ever."""

import warnings

import pytest
import torch
from torch import nn

from pytorch_quantizer import QuantizerWarning, Recipe, quantize
from pytorch_quantizer.command_line import run


@pytest.fixture(autouse=True)
def _shown_as_python_shows():
    """Not recorded by pytest: a warning goes where a user's would."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


def warn(category=QuantizerWarning):
    warnings.warn_explicit("one\n  two", category, "somewhere.py", 7)


class TestInACommand:
    def test_of_this_package_one_line(self, capsys):
        run("pq run", warn)
        assert capsys.readouterr().err == "warning: one two\n"

    @pytest.mark.parametrize("category", [UserWarning, DeprecationWarning])
    def test_of_others_as_ever(self, monkeypatch, category):
        seen = []
        monkeypatch.setattr(warnings, "showwarning", lambda *given: seen.append(given[:3]))
        run("pq run", lambda: warn(category))
        [(message, *told)] = seen
        assert (str(message), *told) == ("one\n  two", category, "somewhere.py")

    def test_the_filters_still_count(self, capsys):
        warnings.simplefilter("ignore")
        run("pq run", warn)
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("ending", [lambda: 3, lambda: 1 / 0], ids=["code", "bug"])
    def test_afterwards_all_is_as_it_was(self, ending):
        before = warnings.showwarning
        with pytest.raises((SystemExit, ZeroDivisionError)):
            run("pq run", ending)
        assert warnings.showwarning is before


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rounding_damping": 0.5}, "rounding_damping 0.5: without effect"),
        ({"equalize": True}, "equalize was asked for and changed nothing"),
        ({"reconstruction": "layer", "reconstruction_iterations": 1}, "reconstruction was asked for and changed"),
        ({"tuning_epochs": 1, "tuning_rate": 1e-9}, "tuning was asked for and changed nothing"),
    ],
    ids=["idle", "equalize", "reconstruction", "tuning"],
)
def test_for_pythons_users_all_is_as_it_was_and_their_own_line_is_named(recwarn, fields, told):
    quantize(nn.Sequential(nn.ReLU()), Recipe(**fields), torch.ones(1, 2), progress=False)
    [warned] = [entry for entry in recwarn if str(entry.message).startswith(told)]
    assert (warned.category, warned.filename) == (QuantizerWarning, __file__)

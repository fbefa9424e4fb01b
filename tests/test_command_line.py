"""What every command shares: this package's warnings are a line each, and Python's users see them as ever."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import pytorch_quantizer
from pytorch_quantizer import Recipe, quantize
from pytorch_quantizer.command_line import run

OWN = str(Path(pytorch_quantizer.__file__).parent / "quantize.py")


@pytest.fixture(autouse=True)
def _shown_as_python_shows():
    """Not recorded by pytest: a warning goes where a user's would."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


def warn(text="one\n  two", category=UserWarning, filename=OWN):
    warnings.warn_explicit(text, category, filename, 7)


class TestInACommand:
    def test_of_this_package_one_line(self, capsys):
        run("pq run", warn)
        assert capsys.readouterr().err == "warning: one two\n"

    @pytest.mark.parametrize(
        "changes", [{"category": DeprecationWarning}, {"filename": "/elsewhere/torch.py"}], ids=["category", "package"]
    )
    def test_of_others_as_ever(self, monkeypatch, changes):
        seen = []
        monkeypatch.setattr(warnings, "showwarning", lambda *given: seen.append(given[:3]))
        run("pq run", lambda: warn(**changes))
        [(message, category, filename)] = seen
        assert (str(message), category, filename) == (
            "one\n  two",
            changes.get("category", UserWarning),
            changes.get("filename", OWN),
        )

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


def test_for_pythons_users_all_is_as_it_was(recwarn):
    quantize(nn.Sequential(nn.Linear(2, 2)), Recipe(rounding_damping=0.5), torch.ones(1, 2), progress=False)
    [warned] = recwarn
    assert (warned.category, warned.filename) == (UserWarning, __file__)

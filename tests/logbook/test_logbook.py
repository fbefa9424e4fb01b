"""Several logbooks as one: none of them can stop the work it is told of."""

import warnings

import pytest

from pytorch_quantizer import InputError
from pytorch_quantizer.logbook import Logbooks, LogFlags, open_logbooks


class Memory:
    """A logbook of lists; raises in the methods that it is told."""

    def __init__(self, *raising, finished=()):
        self.raising, self.finished, self.said = raising, set(finished), []

    def has(self, key):
        self._raise("has")
        return key in self.finished

    def run(self, name, key, settings):
        self._raise("run")
        self.said.append((name, key, dict(settings)))
        return self

    def log(self, values, step):
        self._raise("log")
        self.said.append((dict(values), step))

    def finish(self):
        self._raise("finish")
        self.said.append("finished")

    def _raise(self, method):
        if method in self.raising:
            raise OSError("the disk\nis full")


WHOLE = [("name", "key", {"a": 1}), ({"top1": 0.5}, 0), "finished"]


def write(logbooks, **options):
    run = logbooks.run("name", "key", {"a": 1}, **options)
    run.log({"top1": 0.5}, 0)
    run.finish()


def test_all_of_them_hear_all():
    books = [Memory(), Memory()]
    write(Logbooks(books))
    assert [book.said for book in books] == [WHOLE, WHOLE]


def test_those_that_have_a_run_needn_t_hear_it_again():
    books = [Memory(finished=["key"]), Memory()]
    write(Logbooks(books), missing_only=True)
    assert [book.said for book in books] == [[], WHOLE]
    write(Logbooks(books))
    assert books[0].said == WHOLE


@pytest.mark.parametrize("method", ["has", "run", "log", "finish"])
def test_one_that_raises_is_told_of_once_and_left_alone(method):
    broken, sound = Memory(method), Memory()
    logbooks = Logbooks([broken, sound])
    with pytest.warns(UserWarning, match="Memory takes no more for this run .OSError: the disk is full"):
        write(logbooks, missing_only=True)
    said = list(broken.said)
    with warnings.catch_warnings(action="error"):
        write(logbooks, missing_only=True)
    assert broken.said == said
    assert sound.said == [*WHOLE, *WHOLE]


def test_none_is_fine():
    write(open_logbooks(LogFlags(), "experiment"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (LogFlags(tensorboard="t"), r"--tensorboard needs TensorBoard.*pip install 'pytorch-quantizer\[tensorboard\]'"),
        (LogFlags(mlflow="sqlite:///m"), r"--mlflow needs MLflow.*pip install 'pytorch-quantizer\[mlflow\]'"),
    ],
)
def test_one_that_is_not_installed(monkeypatch, tmp_path, flags, said):
    import importlib.util
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else real(name))
    with pytest.raises(InputError, match=said):
        open_logbooks(flags, "experiment")

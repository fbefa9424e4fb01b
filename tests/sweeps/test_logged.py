"""A sweep's rows in a logbook: each with figures once, whatever was interrupted."""

import pytest

from pytorch_quantizer.logbook import Logbooks, LogFlags, open_logbooks
from pytorch_quantizer.sweeps.logged import FIGURES, SETTINGS, log_row
from pytorch_quantizer.sweeps.results import COLUMNS

ROW = {
    **dict.fromkeys(FIGURES, 0.5),
    **dict.fromkeys(SETTINGS, "x"),
    **{"arch": "resnet20", "recipe": "w8a8 clip=mse", "seed": 3, "deployable": True, "error": ""},
    **{"settings": '{"clip": "mse", "overrides": [{"layers": "*"}]}', "key": "k" * 24, "code": "c" * 16},
}


class Book:
    """Keeps what it is told."""

    def __init__(self):
        self.begun, self.logged, self.finished = [], [], set()

    def has(self, key):
        return key in self.finished

    def run(self, name, key, settings):
        self.begun.append((name, key, dict(settings)))
        return self

    def log(self, values, step):
        self.logged.append((dict(values), step))

    def finish(self):
        self.finished.add(self.begun[-1][1])


@pytest.fixture
def book():
    return Book()


def test_settings_and_figures(book):
    log_row(Logbooks([book]), ROW)
    [(name, _, settings)] = book.begun
    assert name == "resnet20_w8a8 clip=mse_seed3"
    assert (settings["clip"], settings["seed"], settings["deployable"]) == ("mse", 3, True)
    assert settings["overrides"] == '[{"layers": "*"}]'
    assert book.logged == [(dict.fromkeys(FIGURES, 0.5), 0)]
    assert {*FIGURES, *SETTINGS} <= COLUMNS.keys()


def test_a_row_once_and_again_only_where_it_changed(book):
    for row in (ROW, ROW, ROW | {"key": "l" * 24}, ROW | {"code": "d" * 16}, ROW):
        log_row(Logbooks([book]), row)
    assert len(book.begun) == len(book.finished) == 3


def test_a_failed_one_is_not_there(book):
    log_row(Logbooks([book]), ROW | {"error": "no", "top1": None})
    assert book.begun == []


def test_in_tensorboard_a_run_each(tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard isn't installed (extra [tensorboard])")
    logbooks = open_logbooks(LogFlags(tensorboard=tmp_path), "sweep")
    for seed in (1, 2):
        log_row(logbooks, ROW | {"seed": seed, "key": str(seed) * 24})
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2

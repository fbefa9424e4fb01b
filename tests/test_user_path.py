"""~ in a path is filled in, and a home that isn't there is a user's mistake of one line, not a traceback."""

from pathlib import Path

import pytest

import pytorch_quantizer as pq
from pytorch_quantizer.data import has_split, infer_dataset, load_dataset
from pytorch_quantizer.digests import file_digest
from pytorch_quantizer.experiments.inference_config import ResolvedConfig, load_images, weights_file
from pytorch_quantizer.models import create_model
from pytorch_quantizer.sweeps.settings import Settings
from pytorch_quantizer.user_path import user_path

NOWHERE = "~nosuchuser/file.json"


def test_home_is_filled_in(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/a/b") == Path("/home/me/a/b")
    assert user_path(Path("~")) == Path("/home/me")
    assert user_path("a/~") == Path("a/~")
    assert user_path(NOWHERE) == Path(NOWHERE)


@pytest.mark.parametrize(
    "read",
    [
        pq.Recipe.load,
        pq.load,
        file_digest,
        infer_dataset,
        lambda path: load_dataset("mnist", path),
        lambda path: create_model("resnet20", checkpoint=path),
        lambda path: weights_file(ResolvedConfig(checkpoint=Path(path))),
        lambda path: load_images(ResolvedConfig(calibration_data=Path(path))),
    ],
    ids=["recipe", "packed", "digest", "infer", "data", "weights", "checkpoint", "calibration data"],
)
def test_a_home_that_is_not_there_is_a_users_mistake(read):
    with pytest.raises(pq.InputError, match="~nosuchuser"):
        read(NOWHERE)


def test_nor_does_it_stop_what_only_looks():
    assert not has_split("mnist", NOWHERE, "train")
    assert Settings(data=NOWHERE).data == Path(NOWHERE)

"""Several networks of one job: which weights each gets, and what is refused before any work."""

from pathlib import Path

import pytest

from pytorch_quantizer import InputError
from pytorch_quantizer.experiments.inference_config import InferenceConfig
from pytorch_quantizer.experiments.network_list import configs_of, parse_names


def test_each_network_has_its_weights():
    given = InferenceConfig(dataset="digits", arch="resnet20, resnet32", checkpoint="a.th,b.th")
    assert [(c.arch, c.checkpoint) for c in configs_of(given)] == [
        ("resnet20", Path("a.th")),
        ("resnet32", Path("b.th")),
    ]


def test_weights_beside_the_images_are_taken(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "resnet32.th").write_bytes(b"")
    given = InferenceConfig(dataset="cifar10", data=tmp_path, arch="resnet20,resnet32")
    assert [config.checkpoint for config in configs_of(given)] == [None, tmp_path / "resnet32.th"]


def test_without_names_it_is_the_data_sets_usual_one():
    [config] = configs_of(InferenceConfig())
    assert (config.dataset, config.arch, config.checkpoint) == ("digits", "resnet20", None)


@pytest.mark.parametrize(
    ("arch", "checkpoint", "said"),
    [
        ("resnet20,resnet21", None, "unknown arch 'resnet21'"),
        ("resnet20,resnet32", "a.th", "as many files, with commas, as there are networks, 2, got 1"),
        ("resnet20", "a.th,b.th", "networks, 1, got 2"),
        ("resnet20,", None, "--arch must be a list with commas, got 'resnet20,'"),
        ("resnet20", "a.th,", "--checkpoint must be a list with commas"),
    ],
)
def test_what_is_refused(arch, checkpoint, said):
    with pytest.raises(InputError, match=said):
        configs_of(InferenceConfig(dataset="digits", arch=arch, checkpoint=checkpoint))


def test_each_name_once():
    assert parse_names("--x", "b, a,b") == ["b", "a"]

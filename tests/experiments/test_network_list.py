"""Several networks of one job: which weights each gets, and what is refused before any work."""

import pytest

from pytorch_quantizer import InputError
from pytorch_quantizer.experiments.inference_config import InferenceConfig
from pytorch_quantizer.experiments.network_list import configs_of, parse_names


def test_each_network_has_its_weights(tmp_path):
    files = [tmp_path / "a.th", tmp_path / "b.th"]
    for file in files:
        file.write_bytes(b"")
    given = InferenceConfig(dataset="digits", arch="resnet20, resnet32", checkpoint=",".join(map(str, files)))
    assert [(c.arch, c.checkpoint) for c in configs_of(given)] == [("resnet20", files[0]), ("resnet32", files[1])]


def test_weights_beside_the_images_are_taken(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in ("resnet20", "resnet32"):
        (tmp_path / f"{name}.th").write_bytes(b"")
    given = InferenceConfig(dataset="cifar10", data=tmp_path, arch="resnet20,resnet32")
    assert [config.checkpoint for config in configs_of(given)] == [tmp_path / "resnet20.th", tmp_path / "resnet32.th"]


def test_torchvisions_weights_need_no_file():
    given = InferenceConfig(dataset="imagenet", arch="resnet18,vgg16")
    assert [config.checkpoint for config in configs_of(given)] == [None, None]


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


@pytest.mark.parametrize(
    ("dataset", "arch", "said"),
    [
        ("digits", "resnet20,resnet32", "no weights for resnet32 on digits: give --checkpoint FILE"),
        ("imagenet", "resnet18,resnet20", "no weights for resnet20 on imagenet: give --checkpoint FILE"),
    ],
)
def test_weights_that_only_the_second_network_lacks(dataset, arch, said):
    with pytest.raises(InputError, match=said):
        configs_of(InferenceConfig(dataset=dataset, arch=arch))


def test_a_file_that_only_the_second_network_lacks(tmp_path):
    (tmp_path / "a.th").write_bytes(b"")
    given = InferenceConfig(dataset="digits", arch="resnet20,resnet32", checkpoint=f"{tmp_path / 'a.th'},/no/b.th")
    with pytest.raises(InputError, match=r"checkpoint /no/b\.th is not a file: check the path"):
        configs_of(given)


def test_each_name_once():
    assert parse_names("--x", "b, a,b") == ["b", "a"]

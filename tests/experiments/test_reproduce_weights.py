"""A table's float network is trained once, as its config says, and never taken for another's."""

import json

import numpy as np
import pytest

import pytorch_quantizer.experiments.reproduce_weights as weights
from pytorch_quantizer import InputError
from pytorch_quantizer.experiments.reproduce_weights import published_weights, trained_weights

SETTINGS = "arch: resnet20\ndataset: cifar10\nepochs: 1\nbatch_size: 16\nvalidation_fraction: 0\ndevice: cpu\n"


@pytest.fixture
def folder(tmp_path):
    """CIFAR-10 in miniature, 40 images of noise each split, and a config."""
    for seed, split in enumerate(("train", "test")):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=pixels, labels=np.arange(40) % 10)
    (tmp_path / "config.yaml").write_text(SETTINGS)
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """The configs that were trained."""
    done, real = [], weights.train
    monkeypatch.setattr(weights, "train", lambda config: done.append(config) or real(config, progress=False))
    return done


def find(folder):
    return trained_weights(folder / "config.yaml", folder, folder / "out" / "net.safetensors")


class TestTrained:
    def test_once(self, folder, trained):
        path = find(folder)
        content = path.read_bytes()
        assert find(folder) == path
        assert path.read_bytes() == content
        assert [(config.epochs, config.data) for config in trained] == [(1, folder)]

    def test_from_another_place_they_are_the_same(self, folder, trained):
        path = find(folder)
        report = json.loads(path.with_suffix(".json").read_text())
        report["config"] |= {"data": "elsewhere", "output": "elsewhere", "workers": 3}
        path.with_suffix(".json").write_text(json.dumps(report))
        assert find(folder) == path
        assert len(trained) == 1

    def test_other_settings_are_named_and_nothing_is_overwritten(self, folder, trained):
        content = find(folder).read_bytes()
        (folder / "config.yaml").write_text(SETTINGS.replace("epochs: 1", "epochs: 2"))
        with pytest.raises(InputError, match=r"otherwise \(epochs 1, here 2\): move it away .*--checkpoint FILE"):
            find(folder)
        assert (folder / "out" / "net.safetensors").read_bytes() == content
        assert len(trained) == 1

    @pytest.mark.parametrize("report", [None, "", "{}", "[]"])
    def test_weights_without_a_report_are_not_believed(self, folder, trained, report):
        file = find(folder).with_suffix(".json")
        file.unlink() if report is None else file.write_text(report)
        with pytest.raises(InputError, match=r"net.json doesn't say how .* was trained: move both away"):
            find(folder)

    def test_no_training_images(self, folder, trained):
        (folder / "train.npz").unlink()
        with pytest.raises(InputError, match="holds no training images of cifar10"):
            find(folder)
        assert not trained


def test_published_weights(tmp_path):
    with pytest.raises(InputError, match=r"holds no resnet20.th: .*--checkpoint FILE"):
        published_weights(tmp_path, "resnet20.th")
    (tmp_path / "resnet20.th").touch()
    assert published_weights(tmp_path, "resnet20.th") == tmp_path / "resnet20.th"

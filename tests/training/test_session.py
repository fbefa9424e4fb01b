"""Training repeats to the bit, never learns from the test images, and writes whole files."""

import json
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Subset

from pytorch_quantizer.data import load_dataset
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.models import bundled_checkpoint, create_model
from pytorch_quantizer.training import TrainingConfig, train
from pytorch_quantizer.training.pupil import learning_rate_factor
from pytorch_quantizer.training.session import split_validation


@pytest.fixture
def small(tmp_path):
    """CIFAR-10 in miniature: 40 images of noise, 8x8, each split."""
    for seed, split in enumerate(("train", "test")):
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=pixels, labels=np.arange(40) % 10)
    return tmp_path


def config_of(folder, **settings):
    given = {"dataset": "cifar10", "data": folder, "epochs": 1, "batch_size": 16, "validation_fraction": 0.25}
    return TrainingConfig(**given | {"device": "cpu", "output": folder / "out" / "model.safetensors"} | settings)


class TestRun:
    def test_writes_weights_that_load_and_a_report(self, small):
        config = config_of(small, epochs=2)
        report = train(config, progress=False)
        create_model("resnet20", checkpoint=config.output)
        assert sorted(path.name for path in config.output.parent.iterdir()) == [
            "model.best.safetensors",
            "model.epochs.csv",
            "model.json",
            "model.safetensors",
        ]
        assert json.loads(config.output.with_suffix(".json").read_text()) == json.loads(json.dumps(report))
        assert report["test"]["samples"] == 40
        assert [record["epoch"] for record in report["epochs"]] == [1, 2]
        assert report["epochs"][0]["validation"].keys() == {"accuracy", "precision", "recall", "f1"}

    def test_equal_runs_give_equal_files_and_another_seed_does_not(self, small):
        files = [small / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
        for seed, file in zip((1, 1, 2), files, strict=True):
            train(config_of(small, seed=seed, output=file), progress=False)
        assert files[0].read_bytes() == files[1].read_bytes()
        assert not torch.equal(load_file(files[0])["conv1.weight"], load_file(files[2])["conv1.weight"])

    def test_torchs_own_settings_are_given_back(self, small):
        threads = torch.get_num_threads()
        train(config_of(small, threads=threads + 1, validation_fraction=0), progress=False)
        assert torch.get_num_threads() == threads
        assert not torch.are_deterministic_algorithms_enabled()

    def test_the_test_images_decide_nothing(self, small):
        train(config_of(small, output=small / "a.safetensors"), progress=False)
        np.savez(small / "test.npz", images=np.zeros((5, 8, 8, 3), np.uint8), labels=np.arange(5))
        train(config_of(small, output=small / "b.safetensors"), progress=False)
        first, second = load_file(small / "a.safetensors"), load_file(small / "b.safetensors")
        assert all(torch.equal(first[key], second[key]) for key in first)


class TestImageSize:
    @pytest.fixture
    def sizes(self, small, monkeypatch):
        """The heights of the images that a network saw while it trained and was evaluated."""
        seen = set()

        def seeing(*args, **kwargs):
            model = create_model("resnet20")
            model.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].shape[2]))
            return model

        monkeypatch.setattr("pytorch_quantizer.training.pupil.create_model", seeing)
        return seen

    @pytest.mark.parametrize(("settings", "size"), [({}, 8), ({"image_size": 16}, 16)])
    def test_training_and_test_images_are_brought_to_it(self, small, sizes, settings, size):
        train(config_of(small, **settings), progress=False)
        assert sizes == {size}

    def test_none_at_all(self, small):
        with pytest.raises(InputError, match="image_size must be at least 1, got 0"):
            config_of(small, image_size=0)


class TestWarmUp:
    @pytest.mark.parametrize(("warmup", "warns"), [(1, True), (2.5, True), (0.5, False)])
    def test_one_that_takes_all_epochs_is_told(self, small, warmup, warns):
        config = config_of(small, epochs=1, warmup_epochs=warmup, learning_rate=0.05)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(config, progress=False)
        said = [str(warning.message) for warning in caught if "warmup_epochs" in str(warning.message)]
        told = f"warmup_epochs {warmup:g} of epochs 1: the learning rate only rises, to less than 0.05; "
        assert [sentence.startswith(told) for sentence in said] == [True] * warns


class TestMistakes:
    def test_divergence_is_said_and_nothing_is_written(self, small):
        config = config_of(small, epochs=5, learning_rate=1e30, warmup_epochs=0, validation_fraction=0)
        with pytest.raises(
            InputError, match=r"training diverged in epoch \d: the loss is .*; lower learning_rate \S+$"
        ):
            train(config, progress=False)
        assert not list(config.output.parent.iterdir())

    def test_an_output_that_can_not_be_written_is_said_before_training(self, small, monkeypatch):
        monkeypatch.setattr("pytorch_quantizer.training.session._run_epochs", lambda *_: pytest.fail("trained"))
        with pytest.raises(InputError, match="can't write"):
            train(config_of(small, output=small / "test.npz" / "model.safetensors"), progress=False)

    def test_more_images_a_batch_than_there_are(self, small):
        with pytest.raises(InputError, match="batch_size 64 is more than the 30 training images"):
            train(config_of(small, batch_size=64), progress=False)

    def test_a_device_that_is_not_there(self, small):
        with pytest.raises(InputError, match=r"device 'cuda:99' isn't there .*--device cpu"):
            train(config_of(small, device="cuda:99"), progress=False)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"epochs": 0}, "epochs must be at least 1, got 0"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"seed": -1}, "seed must lie in"),
            ({"seed": 10**30}, "seed must lie in"),
            ({"learning_rate": 0.0}, "learning_rate must be positive"),
            ({"threads": 0}, "threads must be at least 1, got 0"),
            ({"threads": -3}, "threads must be at least 1, got -3"),
            ({"threads": 2**40}, "threads must be at most 1024, got"),
            ({"workers": -1}, "workers must be at least 0, got -1"),
            ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
            ({"validation_fraction": 1.0}, "validation_fraction must lie"),
            ({"weight_decay": -1.0}, "weight_decay can't be negative, got -1.0"),
            ({"warmup_epochs": -1}, "warmup_epochs can't be negative, got -1"),
            ({"output": Path("model.pth")}, r"output must end in \.safetensors, got model\.pth"),
        ],
    )
    def test_impossible_settings(self, settings, said):
        with pytest.raises(InputError, match=said):
            TrainingConfig(**settings)

    def test_a_share_of_images_that_is_none_leaves_no_best_epoch(self, small, monkeypatch):
        monkeypatch.setattr("pytorch_quantizer.training.session._run_epochs", lambda *_: pytest.fail("trained"))
        with pytest.raises(
            InputError, match=r"keep best needs .* validation_fraction 0\.001 of cifar10 is none: raise it"
        ):
            train(config_of(small, keep="best", validation_fraction=0.001), progress=False)


class TestParts:
    def test_validation_images_are_kept_out_of_training(self):
        data = load_dataset("digits", split="train")
        training, validation = split_validation(data, 0.1, seed=0)
        assert len(validation) == 126
        assert sorted([*training.indices, *validation.indices]) == list(range(len(data)))
        assert split_validation(data, 0.1, seed=0)[1].indices == validation.indices
        assert split_validation(data, 0.1, seed=1)[1].indices != validation.indices

    def test_no_share_no_validation(self):
        training, validation = split_validation(load_dataset("digits"), 0.0, seed=0)
        assert isinstance(training, Subset)
        assert len(training) == 540
        assert validation is None

    def test_the_rate_rises_over_the_warm_up_and_falls_along_a_cosine(self):
        factors = [learning_rate_factor(step, warmup_steps=4, steps=104) for step in range(105)]
        assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert factors[54] == pytest.approx(0.5)
        assert factors[104] == pytest.approx(0.0)
        assert all(0 <= later < sooner for sooner, later in pairwise(factors[4:]))

    def test_without_a_warm_up_the_first_rate_is_the_highest(self):
        assert learning_rate_factor(0, warmup_steps=0, steps=10) == 1.0


def test_the_bundled_report_is_of_the_bundled_weights():
    report = json.loads(bundled_checkpoint("digits_resnet20").with_suffix(".json").read_text())
    assert report["test"]["samples"] == 540
    assert round(report["test"]["top1"] * 540) == 536

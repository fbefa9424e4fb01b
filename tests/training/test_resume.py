"""A run that was killed goes on behind its last whole epoch and ends with the bytes of an unbroken one."""

import json

import numpy as np
import pytest
import torch

import pytorch_quantizer as pq
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.models import create_model
from pytorch_quantizer.training import Augmentation, Qat, TrainingConfig, session, train

SETTINGS = {
    "float": {"ema": 0.9, "learning_rate": 0.05},
    "float without average": {"learning_rate": 0.05},
    "quantized": {"recipe": "w2a2_qat", "ema": 0.9, "qat": Qat(calibration_images=16)},
    "quantized, folded": {"recipe": "w2a2_qat", "qat": Qat(calibration_images=16, norms=False, distillation=0.5)},
}


@pytest.fixture
def folder(tmp_path):
    """CIFAR-10 in miniature, and a network that has seen none of it."""
    for seed, split in enumerate(("train", "test")):
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=pixels, labels=np.arange(40) % 10)
    torch.manual_seed(0)
    torch.save(create_model("resnet20").state_dict(), tmp_path / "float.pth")
    return tmp_path


def config_of(folder, name, **settings):
    given = {"dataset": "cifar10", "data": folder, "epochs": 3, "batch_size": 10, "validation_fraction": 0.25}
    given |= {"device": "cpu", "threads": 1, "augmentation": Augmentation(shift=1, flip=True)}
    given |= {"checkpoint": folder / "float.pth"} if "recipe" in settings else {}
    return TrainingConfig(**given | {"output": folder / "out" / f"{name}.safetensors"} | settings)


def break_at(monkeypatch, batch):
    """Stop training at a batch, counted from 1, as Ctrl-C or a kill does."""
    seen = []

    def augment(*arguments):
        seen.append(None)
        if len(seen) == batch:
            raise KeyboardInterrupt
        return original(*arguments)

    original = session.augment
    monkeypatch.setattr(session, "augment", augment)


def broken(monkeypatch, config, batch):
    with monkeypatch.context() as patch:
        break_at(patch, batch)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)


def files(config):
    stem = config.output.with_suffix("")
    return [stem.with_suffix(ending).read_bytes() for ending in (".safetensors", ".best.safetensors")]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_broken_run_ends_as_an_unbroken_one(folder, monkeypatch, settings):
    whole, parts = config_of(folder, "whole", **settings), config_of(folder, "parts", **settings)
    expected = train(whole, progress=False)
    broken(monkeypatch, parts, 2)  # in the first epoch, of which nothing is left
    broken(monkeypatch, parts, 5)  # in the second
    broken(monkeypatch, parts, 4)  # behind the second
    report = train(parts, progress=False)
    assert files(parts) == files(whole)
    assert report["epochs"] == expected["epochs"]
    assert report["test"] == expected["test"]


def test_only_what_is_left_is_trained(folder, monkeypatch):
    config = config_of(folder, "parts")
    broken(monkeypatch, config, 8)
    epochs = []
    original = session.train_epoch
    monkeypatch.setattr(session, "train_epoch", lambda given: epochs.append(len(given.history)) or original(given))
    train(config, progress=False)
    assert epochs == [2]


def test_a_finished_run_leaves_no_state_and_is_trained_anew(folder):
    config = config_of(folder, "twice", epochs=1)
    first = train(config, progress=False)
    assert not config.output.with_suffix(".state.safetensors").exists()
    assert train(config, progress=False)["epochs"] == first["epochs"]


def test_other_settings_do_not_go_on(folder, monkeypatch):
    config = config_of(folder, "parts")
    broken(monkeypatch, config, 5)
    other = config_of(folder, "parts", learning_rate=0.01)
    with pytest.raises(InputError, match=r"other settings \(learning_rate 0\.1\).*--resume false to begin anew"):
        train(other, progress=False)
    report = train(config_of(folder, "parts", learning_rate=0.01, resume=False), progress=False)
    assert report["epochs"] == train(config_of(folder, "anew", learning_rate=0.01), progress=False)["epochs"]


def test_a_damaged_state_is_said(folder, monkeypatch):
    config = config_of(folder, "parts")
    broken(monkeypatch, config, 5)
    state = config.output.with_suffix(".state.safetensors")
    whole = state.read_bytes()
    for damaged in (
        whole[:1000],
        whole[:-1] + bytes([whole[-1] ^ 1]),
        whole.replace(b'\\"steps\\": 3', b'\\"steps\\": 4'),
    ):
        assert damaged != whole
        state.write_bytes(damaged)
        with pytest.raises(InputError, match="remove it to begin anew"):
            train(config, progress=False)


class TestOtherFiles:
    """What a run reads may change between a stop and its resumption, under the same name; or move, the same."""

    def images(self, folder, seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / "train.npz", images=pixels, labels=np.arange(40) % 10)

    def test_other_images(self, folder, monkeypatch):
        config = config_of(folder, "parts")
        broken(monkeypatch, config, 5)
        self.images(folder, 7)
        with pytest.raises(InputError, match=r"other settings \(images 'sha256 .*--resume false to begin anew"):
            train(config, progress=False)

    def test_other_weights_to_begin_with(self, folder, monkeypatch):
        config = config_of(folder, "parts", **SETTINGS["quantized"])
        broken(monkeypatch, config, 5)
        torch.manual_seed(1)
        torch.save(create_model("resnet20").state_dict(), folder / "float.pth")
        with pytest.raises(InputError, match=r"other settings \(checkpoint 'sha256 "):
            train(config, progress=False)

    def test_another_recipe_in_the_same_file(self, folder, monkeypatch):
        pq.Recipe(weights="int4", activations="int4").save(folder / "mine.yaml")
        config = config_of(folder, "parts", **SETTINGS["quantized"] | {"recipe": str(folder / "mine.yaml")})
        broken(monkeypatch, config, 5)
        pq.Recipe(weights="int3", activations="int4").save(folder / "mine.yaml")
        with pytest.raises(InputError, match=r"other settings \(recipe.weights 'int4'\)"):
            train(config, progress=False)

    def test_the_same_files_elsewhere_go_on(self, folder, monkeypatch, tmp_path_factory):
        settings = SETTINGS["quantized"]
        expected = train(config_of(folder, "whole", **settings), progress=False)
        config = config_of(folder, "parts", **settings)
        broken(monkeypatch, config, 5)
        elsewhere = tmp_path_factory.mktemp("elsewhere")
        for name in ("train.npz", "test.npz", "float.pth"):
            (elsewhere / name).write_bytes((folder / name).read_bytes())
        moved = config_of(elsewhere, "parts", **settings | {"output": config.output})
        epochs, original = [], session.train_epoch
        monkeypatch.setattr(session, "train_epoch", lambda given: epochs.append(len(given.history)) or original(given))
        assert train(moved, progress=False)["test"] == expected["test"]
        assert epochs == [1, 2]


class TestBest:
    def scores(self, monkeypatch, *accuracies):
        """Let validation say what accuracy each epoch has."""
        left = list(accuracies)
        original = session.evaluate

        def evaluate(network, loader, **options):
            measured = original(network, loader, **options)
            return type("Scores", (), vars(measured) | {"top1": left.pop(0)})() if left else measured

        monkeypatch.setattr(session, "evaluate", evaluate)
        monkeypatch.setattr(session, "_macro", lambda scores: {"accuracy": scores.top1})

    @pytest.mark.parametrize("settings", [SETTINGS["float"], SETTINGS["quantized"]], ids=["float", "quantized"])
    def test_it_is_kept_and_written_where_that_is_asked(self, folder, monkeypatch, settings):
        second = config_of(folder, "second", epochs=3, keep="last", **settings)
        with monkeypatch.context() as patch:
            self.scores(patch, 0.1, 0.9, 0.5)
            last = train(second, progress=False)
        config = config_of(folder, "best", epochs=3, keep="best", **settings)
        with monkeypatch.context() as patch:
            self.scores(patch, 0.1, 0.9, 0.5)
            report = train(config, progress=False)
        assert (last["best_epoch"], last["written_epoch"]) == (2, 3)
        assert (report["best_epoch"], report["written_epoch"]) == (2, 2)
        written, best = files(config)
        assert written == best == files(second)[1]
        assert files(second)[0] != best

    @pytest.mark.parametrize("keep", ["last", "best"])
    def test_a_run_whose_best_is_gone_does_not_go_on(self, folder, monkeypatch, keep):
        config = config_of(folder, "parts", keep=keep)
        broken(monkeypatch, config, 8)
        best = config.output.with_suffix(".best.safetensors")
        kept = best.read_bytes()
        best.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(session, "train_epoch", lambda _: pytest.fail("trained"))
            with pytest.raises(InputError, match=r"parts\.best\.safetensors, .* is gone: put it back .*--resume false"):
                train(config, progress=False)
        best.write_bytes(kept)
        train(config, progress=False)
        whole = config_of(folder, "whole", keep=keep)
        train(whole, progress=False)
        assert files(config) == files(whole)

    def test_without_validation_images_there_is_none_to_miss(self, folder, monkeypatch):
        config = config_of(folder, "parts", validation_fraction=0.0)
        broken(monkeypatch, config, 10)
        assert len(train(config, progress=False)["epochs"]) == 3

    def test_without_validation_images_there_is_none_to_keep(self, folder):
        with pytest.raises(InputError, match="keep best needs validation images"):
            config_of(folder, "best", keep="best", validation_fraction=0.0)


class TestQuantized:
    def test_what_is_written_is_a_packed_checkpoint(self, folder):
        config = config_of(folder, "quantized", epochs=1, **SETTINGS["quantized"])
        report = train(config, progress=False)
        model = pq.load(config.output)
        assert model.recipe.name == "w2a2_qat"
        assert report["config"]["recipe"] == "w2a2_qat"
        assert json.loads(config.output.with_suffix(".json").read_text()) == json.loads(json.dumps(report))

    def test_it_begins_with_a_trained_network(self, folder):
        with pytest.raises(InputError, match="begins with a trained network: give --checkpoint FILE"):
            train(config_of(folder, "x", recipe="w2a2_qat", checkpoint=None), progress=False)

    def test_fixed_grids_are_those_of_calibration(self, folder):
        """Written weights, batch norms folded and steps of activations, after an average as well."""
        settings = SETTINGS["quantized"] | {"qat": Qat(calibration_images=16, norms=False, grids="fixed")}
        config = config_of(folder, "fixed", epochs=1, **settings | {"learning_rate": 0.5})
        train(config, progress=False)
        barely = config_of(folder, "barely", epochs=1, **settings | {"learning_rate": 1e-12})
        train(barely, progress=False)
        learned, begun = (dict(pq.load(each.output).named_buffers()) for each in (config, barely))
        grids = [name for name in begun if name.endswith(("scale", "zero_point"))]
        assert len(grids) > 40
        assert all(torch.equal(learned[name], begun[name]) for name in grids)
        assert config.output.read_bytes() != barely.output.read_bytes()

    def test_bfloat16_learns_too(self, folder):
        config = config_of(folder, "bfloat16", epochs=1, bfloat16=True, **SETTINGS["quantized"])
        assert train(config, progress=False)["epochs"][0]["loss"] > 0


def test_weights_to_begin_with(folder):
    config = config_of(folder, "further", epochs=1, learning_rate=1e-9, checkpoint=folder / "float.pth")
    train(config, progress=False)
    begun = create_model("resnet20", checkpoint=folder / "float.pth").state_dict()
    ended = create_model("resnet20", checkpoint=config.output).state_dict()
    torch.testing.assert_close(ended["conv1.weight"], begun["conv1.weight"], rtol=0, atol=1e-6)

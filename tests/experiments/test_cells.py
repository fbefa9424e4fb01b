"""Cells of a table: kept once, never taken for another's, never stale; whatever determines a number is in the key."""

import json
from dataclasses import replace

import pytest
import torch

import pytorch_quantizer.experiments.cells as cells
from pytorch_quantizer import Recipe
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.cells import CellStore, Network, code_digest, settings, weights_digest
from pytorch_quantizer.experiments.inference_config import InferenceConfig, resolved

KEY = {"arch": "net", "recipe": {"weights": "int8"}, "sizes": (1, 2)}
FEW = resolved(InferenceConfig(limit=20, calibration_samples=32, batch_size=32, device="cpu"))


class TestStore:
    def test_gives_back_what_was_written(self, tmp_path):
        store = CellStore(tmp_path)
        assert store.read(KEY) is None
        written = store.write(KEY, {"top1": 0.1, "interval": (0.0, 0.2)})
        assert store.read(KEY) == written == {"top1": 0.1, "interval": [0.0, 0.2], "code": code_digest()}
        assert CellStore(tmp_path).read(dict(reversed(KEY.items()))) == written  # another process, another order

    @pytest.mark.parametrize("other", [{"arch": "net2"}, {"recipe": {"weights": "int4"}}, {"more": None}])
    def test_another_key_is_another_cell(self, tmp_path, other):
        store = CellStore(tmp_path)
        store.write(KEY, {"top1": 0.1})
        assert store.read(KEY | other) is None

    def test_a_file_under_the_wrong_name_is_not_believed(self, tmp_path):
        store = CellStore(tmp_path)
        store.write(KEY, {"top1": 0.1})
        [path] = tmp_path.glob("*.json")
        path.rename(store._path({"arch": "other"}))
        assert store.read({"arch": "other"}) is None

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"key": {}}', "\xff"])
    def test_a_damaged_file_is_no_cell(self, tmp_path, content):
        store = CellStore(tmp_path)
        store.write(KEY, {"top1": 0.1})
        [path] = tmp_path.glob("*.json")
        path.write_text(content, encoding="latin-1")
        assert store.read(KEY) is None

    def test_other_code_is_another_number_unless_one_says_so(self, tmp_path, monkeypatch):
        CellStore(tmp_path).write(KEY, {"top1": 0.1})
        before = code_digest()
        monkeypatch.setattr(cells, "code_digest", lambda: "changed")
        assert CellStore(tmp_path).read(KEY) is None
        assert CellStore(tmp_path, any_code=True).read(KEY) == {"top1": 0.1, "code": before}

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(InputError, match="file"):
            CellStore(tmp_path / "file")


def test_the_code_digest_sees_a_changed_source(tmp_path, monkeypatch):
    (tmp_path / "graph").mkdir()
    source = tmp_path / "graph" / "fold.py"
    source.write_text("a = 1")
    (tmp_path / "experiments").mkdir()
    report = tmp_path / "experiments" / "report.py"
    report.write_text("b = 1")
    monkeypatch.setattr(cells, "PACKAGE", tmp_path)
    before = code_digest.__wrapped__()
    report.write_text("b = 2")  # computes nothing
    assert code_digest.__wrapped__() == before
    source.write_text("a = 2")
    assert code_digest.__wrapped__() != before


def test_the_code_digest_is_of_this_machine_unless_it_is_to_be_of_any(monkeypatch):
    machines = [{"torch": "2", "kernels": kernels} for kernels in ("cpu: avx2", "cpu: avx512; cuda: 9.0")]
    found = []
    for said in machines:
        monkeypatch.setattr(cells, "versions", lambda said=said: said)
        found.append([code_digest.__wrapped__(), code_digest.__wrapped__(any_machine=True)])
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]


def test_the_weights_digest_sees_each_weight():
    layer = torch.nn.Linear(2, 3)
    before = weights_digest(layer)
    assert weights_digest(layer) == before
    with torch.no_grad():
        layer.bias[1] = torch.nextafter(layer.bias[1], torch.tensor(9.0))
    assert weights_digest(layer) != before


def test_a_recipes_name_is_not_a_setting():
    assert settings(Recipe(name="a")) == settings(Recipe(name="b"))
    assert settings(Recipe(clip="mse")) != settings(Recipe())


class TestNetwork:
    @pytest.fixture
    def store(self, tmp_path):
        return CellStore(tmp_path / "cells")

    @pytest.fixture
    def computed(self, monkeypatch):
        """The recipes that were computed, not kept; nothing is quantized."""
        done = []

        def counted(model, recipe, *args, **kwargs):
            done.append(recipe)
            return model

        monkeypatch.setattr(cells, "quantize", counted)
        return done

    def test_a_recipe_is_computed_once(self, store, computed):
        first = Network(FEW, store).measure(Recipe(name="a", activations="int3"))
        again = Network(FEW, store).measure(Recipe(name="b", activations="int3"))
        assert len(computed) == 1
        assert (first.pop("kept"), again.pop("kept")) == (False, True)
        assert first == again
        assert (first["samples"], first["correct"]) == (20, round(20 * first["top1"]))

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"limit": 21},
            {"calibration_samples": 33},
            {"batch_size": 16},
        ],
    )
    def test_what_changes_a_number_computes_it_again(self, store, computed, change):
        recipe = Recipe(activations="int3")
        Network(FEW, store).measure(recipe)
        Network(replace(FEW, **change), store).measure(recipe)
        assert len(computed) == 2
        Network(FEW, store).measure(recipe.replace(clip="laplace"))
        assert len(computed) == 3

    def test_other_weights_under_the_same_name(self, store, computed):
        recipe, network = Recipe(activations="int3"), Network(FEW, store)
        network.measure(recipe)
        with torch.no_grad():
            next(network.model.parameters()).mul_(1.01)
        network._key = network._shared_key()
        network.measure(recipe)
        assert len(computed) == 2

    def test_the_float_network(self, store, computed):
        assert Network(FEW, store).measure(None)["top1"] > 0.9
        assert not computed

    def test_the_float_network_is_the_same_whatever_calibrates(self, store, monkeypatch):
        found = Network(FEW, store).measure(None)
        monkeypatch.setattr(cells, "evaluate", None)
        again = Network(replace(FEW, seed=1, calibration_samples=33), store).measure(None)
        assert (found.pop("kept"), again.pop("kept")) == (False, True)
        assert found == again
        assert Network(replace(FEW, limit=21), store).kept(None) is None

    def test_the_cell_says_what_it_is(self, store, computed):
        Network(FEW, store).measure(Recipe(activations="int3"))
        [path] = store.folder.glob("*.json")
        key = json.loads(path.read_text())["key"]
        assert key["recipe"]["activations"] == "int3"
        assert {"dataset", "arch", "weights", "test_images", "seed", "limit", "calibration_samples"} <= key.keys()

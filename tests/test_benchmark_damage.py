"""The pure parts of benchmarks/damaged_checkpoints.py: what it makes of a file, and how it counts what became of it."""

import json
import random

import damaged_checkpoints as damage
import pytest
import torch
from networks import images
from safetensors.torch import load

import pytorch_quantizer as pq
from pytorch_quantizer.export import checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "m.safetensors"
    torch.manual_seed(0)
    model = pq.quantize(damage.convolutions().eval(), "w8a8", images(4, 3, 16, 16), progress=False)
    pq.save(model, path)
    return path, path.read_bytes(), damage.other_file(path)


class TestDamage:
    @pytest.mark.parametrize("kind", damage.CHANCE)
    def test_is_repeatable_and_various(self, kind, files):
        _, whole, other = files
        made = [damage.CHANCE[kind](whole, other, random.Random(seed)) for seed in range(20)]
        assert made == [damage.CHANCE[kind](whole, other, random.Random(seed)) for seed in range(20)]
        assert len(set(made) - {whole}) > 8

    def test_by_chance_never_leaves_the_file_as_it_was(self, files):
        _, whole, other = files
        found = [damage.by_chance(whole, other, random.Random(seed)) for seed in range(200)]
        assert {kind for kind, _ in found} == set(damage.CHANCE)
        assert all(data != whole for _, data in found)

    def test_files_made_on_purpose_have_a_checksum_that_fits(self, files):
        _, whole, _ = files
        for seed in range(20):
            _, data = damage.on_purpose(whole, random.Random(seed))
            length = damage.header_length(data)
            said = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][checkpoint.KEY])
            assert said["checksum"] == checkpoint._checksum(load(data))


class TestAttempt:
    def test_the_sound_file(self, files):
        path, whole, _ = files
        assert damage.attempt(path, whole) == "the same model"
        assert damage.attempt(path, None) == "a model"

    def test_another_model_is_a_failure(self, files):
        path, whole, other = files
        path.write_bytes(other)
        assert damage.attempt(path, whole) == "another model"
        path.write_bytes(whole)

    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (pq.InputError("{path} is damaged"), "refused"),
            (pq.InputError("{path} is\ndamaged"), "several lines"),
            (pq.InputError("damaged"), "several lines"),
            (ValueError("?"), "another error"),
            (KeyError("?"), "another error"),
        ],
    )
    def test_errors(self, error, outcome, files, monkeypatch):
        path, whole, _ = files

        def raise_it(given):
            raise type(error)(str(error).replace("{path}", str(given)))

        monkeypatch.setattr(pq, "load", raise_it)
        assert damage.attempt(path, whole) == outcome

    def test_failures_are_counted(self):
        row = {"network": "x", "outcomes": {"cut": {"refused": 3, "another model": 2}, "flipped": {"crash or hang": 1}}}
        assert sum(damage.counted(row, damage.FAILURES).values()) == 3
        report = damage.report([row | {"slowest": 0.5, "memory": 2**20}])
        assert "6 files of 1 networks: 3 failed" in report

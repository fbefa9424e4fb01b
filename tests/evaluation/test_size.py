"""Sizes: those of files as they lie on disk, and what their tensors add up to, counted by hand."""

import pytest
import torch
from networks import images, sequence
from safetensors.torch import save_file
from torch import nn

from pytorch_quantizer import Recipe, quantize, save
from pytorch_quantizer.evaluation import file_bytes, file_label, size_bytes


def net():
    return sequence(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 1))


class TestSize:
    def test_float_is_every_parameter_and_buffer(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        assert size_bytes(model) == 4 * (12 + 4) + 4 * (4 * 4) + 8  # num_batches_tracked is an int64

    @pytest.mark.parametrize("bits", [8, 4, 3])
    def test_quantized_is_packed_codes_scales_zero_points_and_int32_biases(self, bits):
        recipe = Recipe(weights=f"int{bits}", first=f"int{bits}", last=f"int{bits}", activations="int8")
        model = quantize(net(), recipe, [images()])
        codes = -(-135 * bits // 8) + -(-35 * bits // 8)  # each tensor filled up to whole bytes
        scales, biases = 4 * (5 + 7), 4 * (5 + 7)
        activations = 2 * (4 + 4)  # the input and the ReLU: a scale and a zero point each
        assert size_bytes(model) == codes + scales + biases + activations

    @pytest.mark.parametrize(
        ("weights", "codes", "others"),
        [
            ("kmeans3", 51 + 14, 8 * 4 * (5 + 7)),  # ceil(135 · 3 / 8), ceil(35 · 3 / 8); codebooks of 8 float32
            ("apot4", 68 + 18, 4 * (5 + 7)),
            ("ternary", 34 + 9, 4 * (5 + 7)),
            ("binary", 17 + 5, 4 * (5 + 7)),
            ("fp8_e4m3", 135 + 35, 4 * (5 + 7)),
            ("mxfp4", 68 + 18 + 5 + 7, 0),  # 27 and 5 values a channel: a block each, a byte for its scale
        ],
    )
    def test_codebooks_and_block_scales_count(self, weights, codes, others):
        left = dict.fromkeys(("activations", "first", "last", "bias"), "float32")
        recipe = Recipe(**left, overrides=[{"layers": "*", "weights": weights}], deployable=False)
        assert size_bytes(quantize(net(), recipe, [images()])) == codes + others + 4 * (5 + 7)

    def test_what_stays_float_counts_as_float(self):
        recipe = Recipe(weights="float32", activations="float32", bias="float32", deployable=False)
        assert size_bytes(quantize(net(), recipe, [images()])) == size_bytes(net())

    def test_a_norm_that_cannot_be_folded_counts_in_full(self):
        with_norm = sequence(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5), nn.Conv2d(5, 7, 1, padding=1))
        without = sequence(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 1, padding=1))
        sizes = [size_bytes(quantize(model, "w8a8", [images()])) for model in (with_norm, without)]
        norm = size_bytes(nn.BatchNorm2d(5))
        assert sizes[0] - sizes[1] in (norm, norm + 8)  # and a grid more, where its output has one of its own

    def test_is_in_proportion_on_a_real_network(self):
        torch.manual_seed(0)
        model = sequence(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
        small = size_bytes(quantize(model, Recipe(weights="int4", first="int4", last="int4"), [images(2, 16, 8, 8)]))
        assert 0.125 < small / size_bytes(model) < 0.14


class TestFile:
    def test_of_a_float_model(self, tmp_path):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        save_file(model.state_dict(), tmp_path / "m.safetensors")
        assert file_bytes(model) == (tmp_path / "m.safetensors").stat().st_size > size_bytes(model)
        assert file_label(model) == "file on disk: parameters and buffers as they are, in safetensors"

    def test_of_a_quantized_model(self, tmp_path):
        model = quantize(net(), "w8a8", [images()])
        save(model, tmp_path / "m.safetensors")
        assert file_bytes(model) == (tmp_path / "m.safetensors").stat().st_size > size_bytes(model)
        assert file_label(model) == "file on disk: packed checkpoint of pq.save"

    def test_of_a_model_that_runs_from_a_file(self, tmp_path):
        model = nn.Linear(3, 4)
        model.path = tmp_path / "m.onnx"
        model.path.write_bytes(bytes(123))
        assert file_bytes(model) == 123
        assert file_label(model) == "file on disk: m.onnx"

    def test_what_has_two_names_is_stored_once(self):
        """As a file of safetensors has it; torch's state_dict names it twice."""
        model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
        apart = file_bytes(model)
        model[1].weight = model[0].weight
        assert file_bytes(model) < apart - 40_000

    def test_what_no_file_keeps_does_not_count(self):
        model = nn.Linear(3, 4)
        before = file_bytes(model)
        model.register_buffer("passing", torch.zeros(100), persistent=False)
        assert file_bytes(model) == before

    def test_memory_that_is_shared_or_scattered(self):
        model, memory = nn.Module(), torch.randn(4, 6)
        model.register_buffer("a", memory[:, :3])
        model.register_buffer("b", memory.t())
        assert file_bytes(model) > 4 * (12 + 24)

    def test_nothing_is_left_behind(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        file_bytes(nn.Linear(3, 4))
        assert not list(tmp_path.iterdir())

"""How codes are compared: how many differ, by how much, and which differences are ties."""

import pytest
import torch
from networks import images, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.export.agreement import TensorAgreement, simulated_codes, tensor_agreement


def seen(codes, others, before, bits=8):
    codes, others = (torch.tensor(values, dtype=torch.uint8) for values in (codes, others))
    return TensorAgreement("t", bits).seeing(codes, others, torch.tensor(before))


class TestCounts:
    def test_places_differing_and_most(self):
        found = seen([0, 255, 7, 9], [255, 0, 7, 8], [0.5, 0.5, 0.1, 8.25])
        assert (found.places, found.differing, found.most) == (4, 3, 255)  # of uint8 that don't wrap around
        assert found.share == 0.75

    def test_only_what_differs_counts_for_the_distance_from_a_tie(self):
        assert seen([1, 2], [1, 3], [1.0, 2.5]).from_tie == 0
        assert seen([1, 2], [1, 3], [0.5, 2.75]).from_tie == 0.25

    def test_below_zero(self):
        assert seen([1], [2], [-2.5]).from_tie == 0
        assert seen([1], [2], [-2.375]).from_tie == 0.125

    def test_batches_add_up(self):
        found = seen([1, 1], [1, 3], [0.0, 0.25])
        again = found.seeing(torch.tensor([1, 2, 3]), torch.tensor([2, 2, 3]), torch.tensor([0.5, 0.0, 0.0]))
        assert (again.places, again.differing, again.most, again.from_tie) == (5, 2, 2, 0.25)

    def test_no_images(self):
        found = seen([], [], [])
        assert (found.places, found.differing, found.most, found.from_tie, found.share) == (0, 0, 0, 0.0, 0.0)

    def test_shapes_that_would_broadcast_are_a_bug(self):
        with pytest.raises(ValueError, match="t: codes"):
            seen([1, 2], [1], [0.0, 0.0])


class TestTies:
    @pytest.mark.parametrize(
        ("before", "bits", "ties"),
        [(0.5, 8, True), (0.50009, 8, True), (0.5002, 8, False), (0.5002, 10, True), (0.5002, 4, False)],
    )
    def test_by_their_distance(self, before, bits, ties):
        found = TensorAgreement("t", bits).seeing(
            torch.tensor([0]), torch.tensor([1]), torch.tensor([before], dtype=torch.float64)
        )
        assert found.only_ties is ties
        assert (found.why == "ties") is ties

    def test_two_codes_apart_is_none(self):
        found = seen([0], [2], [0.5])
        assert not found.only_ties

    def test_where_nothing_differs(self):
        assert seen([3], [3], [0.1]).why == "the same"


def test_codes_are_those_of_the_values_that_the_simulation_computes():
    model = pq.quantize(
        sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), "w8a8", images(8, 3, 6, 6), progress=False
    )
    x = images(2, 3, 6, 6)
    outputs, codes = simulated_codes(model, x)
    assert torch.equal(outputs, model(x))
    assert list(codes) == ["x", "body.1"]
    quantizer = model.get_submodule("quantizers.body_1")
    hidden = model.get_submodule("body.0")(model.get_submodule("quantizers.x")(x)).relu()
    assert torch.equal(codes["body.1"], quantizer.quantize(hidden))


def test_each_tensor_answers_for_itself():
    """A wrong first layer doesn't make the second differ."""
    model = pq.quantize(
        sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        "w8a8",
        images(8, 3, 6, 6),
        progress=False,
    )
    model.get_submodule("body.0").bias.data.add_(0.3 * model.get_submodule("body.0").bias_quantizer.scale)
    model.get_submodule("body.0").bias_quantizer.scale.mul_(1.5)
    found = {
        tensor.name: tensor for tensor in tensor_agreement(model, [images(4, 3, 6, 6), images(3, 3, 6, 6, seed=2)])
    }
    assert found["body.1"].differing > 0
    assert found["body.1"].places == 7 * 4 * 4 * 4
    assert found["body.3"].differing == 0

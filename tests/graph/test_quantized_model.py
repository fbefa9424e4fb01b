"""QuantizedModel: what it says of itself, and copies that stay whole."""

import copy
import pickle

import torch
from networks import Untraceable, images, sequence
from torch import nn

from pytorch_quantizer import QuantizedModel, Recipe, quantize


def net():
    return sequence(
        nn.Conv2d(3, 4, 3), nn.ReLU(), Untraceable(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(64, 2)
    )


def simulated(**fields):
    return quantize(net(), Recipe(activations="int4", name="mine", **fields), [images()], progress=False)


class TestSummary:
    def test_lists_every_site(self):
        model = simulated()
        lines = [line.split()[0] for line in model.summary().splitlines() if line.split()]
        for site in model.sites:
            assert lines.count(site.name) == 1, site.name

    def test_tells_type_range_carrier_and_reason(self):
        model = simulated()
        summary = model.summary()
        assert "recipe 'mine' (deployable)" in summary
        rows = {line.split()[0]: line for line in summary.splitlines() if line.split()}
        assert "uint8" in rows["x"]
        assert "int8" in rows["body.0.weight"]
        assert "per-channel[4]" in rows["body.0.weight"]
        assert "int32" in rows["body.0.bias"]
        low, high = next(s for s in model.sites if s.name == "x").quantizer.range()
        assert f"[{low:.4g}, {high:.4g}]" in rows["x"]
        assert "network output" in rows["body.6"]
        assert "control flow" in rows["body.2.gain"]
        assert "not deployable" in simulated(deployable=False).summary()

    def test_counts_add_up(self):
        model = simulated()
        summary, sites = model.summary(), model.sites
        assert f"{sum(s.quantizer is not None for s in sites)} tensors quantized" in summary
        assert f"{sum(s.is_float for s in sites)} tensors left in float" in summary
        assert f"{sum(s.carrier is not None for s in sites)} tensors that an integer kernel never stores" in summary

    def test_table_has_a_row_a_site(self):
        model = simulated()
        table = model.table().set_index("name")
        assert list(table.index) == [site.name for site in model.sites]
        assert (table.loc["x", "bits"], table.loc["x", "type"]) == (8, "uint8")
        assert (table.loc["body.6", "bits"], table.loc["body.6", "type"]) == (32, "float32")
        assert set(table.loc[table.type == "float32", "reason"]).isdisjoint({""})


class TestCopies:
    def test_are_whole_and_apart(self):
        model = simulated()
        twin = copy.deepcopy(model)
        assert isinstance(twin, QuantizedModel)
        assert torch.equal(twin(images()), model(images()))
        assert [site.name for site in twin.sites] == [site.name for site in model.sites]
        assert twin.recipe == model.recipe
        modules, others = set(twin.modules()), set(model.modules())
        for site in twin.sites:
            assert site.quantizer is None or (site.quantizer in modules and site.quantizer not in others), site.name

    def test_changing_a_copys_site_changes_the_copy_alone(self):
        model = simulated()
        twin, before = copy.deepcopy(model), model(images())
        next(site for site in twin.sites if site.name == "x").quantizer.scale.mul_(3)
        assert torch.equal(model(images()), before)
        assert not torch.equal(twin(images()), before)

    def test_state_dict_carries_weights_and_grids(self):
        model = simulated()
        other = quantize(net(), model.recipe, [images(seed=5) * 3], progress=False)
        assert not torch.equal(other(images()), model(images()))
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(images()), model(images()))

    def test_is_in_eval_mode(self):
        assert not any(module.training for module in simulated().modules())


class TestPickle:
    def test_comes_back_whole(self):
        model = simulated()
        restored = pickle.loads(pickle.dumps(model))
        assert isinstance(restored, QuantizedModel)
        assert restored.summary() == model.summary()
        assert torch.equal(restored(images()), model(images()))
        assert not restored.training
        modules = set(restored.modules())
        assert all(site.quantizer in modules for site in restored.sites if site.quantizer is not None)


def test_quantizers_may_be_taken_out():
    model = simulated()
    for name, _ in list(model.quantizers.named_children()):
        setattr(model.quantizers, name, nn.Identity())
    model.recompile()
    assert model(images()).isfinite().all()

"""Settings that change nothing are named, and only these."""

import pytest
import torch

import pytorch_quantizer as pq
from pytorch_quantizer.experiments.leaderboard import DEFAULT_SETTINGS, METHODS, parse_settings, recipe_of
from pytorch_quantizer.quantization.idle_fields import OWNERS, idle_fields, with_changes
from pytorch_quantizer.quantization.recipe import list_recipes

IDLE = [
    ({"reconstruction_iterations": 500}, "reconstruction_iterations 500: without effect.*reconstruction$"),
    ({"tuning_rate": 0.1, "tuning_mirror": True}, "tuning_rate 0.1, tuning_mirror True: .*tuning_epochs$"),
    ({"rounding_order": "size"}, "rounding_order 'size': .*weight_rounding$"),
    ({"correction_source": "analytic"}, "correction_source 'analytic': .*activation_correction$"),
    ({"correction_images": 64}, "correction_images 64: .*a correction$"),
    ({"activation_correction": "mean", "correction_source": "analytic", "correction_images": 64}, "correction_images"),
    ({"weight_correction": "mean", "deployable": False, "correction_images": 64}, "correction_images"),
    ({"allocation_prior": "gaussian"}, "allocation_prior 'gaussian': .*an allocation of bits$"),
    ({"weight_symmetric": False, "weight_narrow": False}, "weight_narrow False: .*weight_symmetric$"),
]
AT_WORK = [
    {},
    {"reconstruction": "block", "reconstruction_iterations": 500},
    {"tuning_epochs": 1, "tuning_rate": 0.1},
    {"weight_rounding": "gptq", "rounding_order": "size", "correction_images": 64},
    {"activation_correction": "mean", "correction_images": 64},
    {"activation_correction": "mean", "correction_source": "analytic"},
    {"weight_correction": "mean", "correction_images": 64},
    {"weight_correction": "both", "weight_correction_form": "paper", "deployable": False},
    {"batch_norm_reestimation": True, "correction_images": 64},
    {"mixed_precision": "both", "mixed_precision_criterion": "measured", "correction_images": 64},
    {"mixed_precision": "both", "allocation_prior": "gaussian", "weights": "int4"},
    {"weight_narrow": False},
]


@pytest.mark.parametrize(("settings", "sentence"), IDLE)
def test_what_changes_nothing_is_named_with_what_it_belongs_to(settings, sentence):
    net, x = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()).eval(), torch.rand(2, 1, 6, 6)
    with pytest.warns(UserWarning, match=sentence):
        pq.quantize(net, pq.Recipe(**settings), x, progress=False)


@pytest.mark.parametrize("settings", AT_WORK)
def test_what_is_at_work_is_not(settings):
    assert not idle_fields(pq.Recipe(**settings))


@pytest.mark.parametrize("name", list_recipes())
def test_no_shipped_recipe_sets_any(name):
    assert not idle_fields(pq.Recipe.load(name))


@pytest.mark.parametrize("method", METHODS)
def test_nor_does_a_method_of_the_leaderboard(method):
    for setting in parse_settings(DEFAULT_SETTINGS):
        assert not idle_fields(recipe_of(method, setting, "narrow", 0))


def test_every_field_that_belongs_to_another_is_known():
    known = vars(pq.Recipe())
    assert all(any(field.startswith(name) for field in known) for _, _, names in OWNERS for name in names)


class TestWithChanges:
    TUNED = pq.Recipe(tuning_epochs=2, tuning_rate=0.1, tuning_mirror=True)

    def test_what_a_change_makes_idle_is_at_its_default(self):
        assert with_changes(self.TUNED, {"tuning_epochs": 0}) == pq.Recipe()

    def test_what_was_changed_or_asked_for_stays_idle_or_not(self):
        changes = {"tuning_epochs": 0, "tuning_rate": 0.2}
        kept = with_changes(self.TUNED, changes, asked=["tuning_mirror"])
        assert (kept.tuning_rate, kept.tuning_mirror) == (0.2, True)

    MIXED = pq.Recipe(
        mixed_precision="both", mixed_precision_criterion="measured", mixed_precision_size=0.1, correction_images=64
    )

    def test_mixed_precision_ends_with_its_budgets(self):
        assert with_changes(self.MIXED, {"mixed_precision": "none"}) == pq.Recipe()
        assert with_changes(self.MIXED, {"clip": "mse"}) == self.MIXED.replace(clip="mse")

    def test_a_budget_of_weights_ends_where_only_activations_are_mixed(self):
        changed = with_changes(self.MIXED, {"mixed_precision": "activations"})
        assert changed == self.MIXED.replace(mixed_precision="activations", mixed_precision_size=None)

    def test_what_is_no_word_is_refused_as_ever(self):
        with pytest.raises(pq.InputError, match="mixed_precision must be one of"):
            with_changes(self.MIXED, {"mixed_precision": ["none"]})

    @pytest.mark.parametrize("how", ["changed", "asked"])
    def test_a_budget_that_was_asked_for_is_refused_without_it(self, how):
        changes = {"mixed_precision": "none"} | ({"mixed_precision_size": 0.2} if how == "changed" else {})
        with pytest.raises(pq.InputError, match="mixed_precision_size needs mixed_precision"):
            with_changes(self.MIXED, changes, asked=["mixed_precision_size"] if how == "asked" else [])

    def test_what_was_idle_before_stays(self):
        before = pq.Recipe(rounding_order="size")
        assert with_changes(before, {"clip": "mse"}) == pq.Recipe(rounding_order="size", clip="mse")

"""Fields of a recipe that are set and change nothing, because what they belong to isn't asked for.
What must not be set together is an error, and the other modules' of fields.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytorch_quantizer.quantization.recipe import Recipe

# (what must be set, whether it is, a prefix of the fields' names or their names, which belong to it)
OWNERS: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ("reconstruction", lambda recipe: recipe.reconstruction != "none", ("reconstruction_",)),
    ("tuning_epochs", lambda recipe: recipe.tuning_epochs > 0, ("tuning_",)),
    ("weight_rounding", lambda recipe: recipe.weight_rounding != "nearest", ("rounding_damping", "rounding_order")),
    ("weight_correction", lambda recipe: recipe.weight_correction != "none", ("weight_correction_form",)),
    ("activation_correction", lambda recipe: recipe.activation_correction != "none", ("correction_source",)),
    ("a correction", lambda recipe: _reads_correction_images(recipe), ("correction_images",)),
    ("an allocation of bits", lambda recipe: _assumes_a_density(recipe), ("allocation_prior",)),
    ("weight_symmetric", lambda recipe: recipe.weight_symmetric, ("weight_narrow",)),
)


def idle_fields(recipe: Any) -> dict[str, list[str]]:
    """For each thing that a Recipe doesn't ask for, but sets fields of: its name → those fields, off their defaults."""
    changed = [entry.name for entry in fields(recipe) if getattr(recipe, entry.name) != entry.default]
    idle = {
        owner: [name for name in changed if name.startswith(names) and name != owner]
        for owner, is_set, names in OWNERS
        if not is_set(recipe)
    }
    return {owner: names for owner, names in idle.items() if names}


def without_idle(recipe: Recipe, kept: Collection[str] = ()) -> Recipe:
    """The recipe with its idle fields, but those in ``kept``, at their defaults."""
    idle = {name for names in idle_fields(recipe).values() for name in names}.difference(kept)
    return recipe.replace(**{entry.name: entry.default for entry in fields(recipe) if entry.name in idle})


def with_changes(recipe: Recipe, changes: Mapping[str, Any], asked: Collection[str] = ()) -> Recipe:
    """The recipe with other values in some fields, and with what only these made idle at its default.

    Nobody asked for the latter, and nobody is warned of it. asked: further fields that stay, idle or not.
    Raises InputError as Recipe does.
    """
    before = [name for names in idle_fields(recipe).values() for name in names]
    changed = recipe.replace(**{**_ended_budgets(recipe, changes, asked), **changes})
    return without_idle(changed, kept={*changes, *asked, *before})


def _ended_budgets(recipe: Recipe, changes: Mapping[str, Any], asked: Collection[str]) -> dict[str, Any]:
    """Defaults for the settings of mixed precision, which a Recipe refuses, idle or not, where ``changes`` end it."""
    mixed = changes.get("mixed_precision")
    if mixed not in ("none", "activations"):
        return {}
    ended = "mixed_precision_" if mixed == "none" else "mixed_precision_size"
    names = {entry.name: entry.default for entry in fields(recipe) if entry.name.startswith(ended)}
    return {name: default for name, default in names.items() if name not in {*changes, *asked}}


def idle_sentences(recipe: Any) -> list[str]:
    """The same as sentences for a warning."""
    sentences = []
    for owner, names in idle_fields(recipe).items():
        given = ", ".join(f"{name} {getattr(recipe, name)!r}" for name in names)
        sentences.append(f"{given}: without effect, as the recipe doesn't set {owner}")
    return sentences


def _reads_correction_images(recipe: Any) -> bool:
    """Whether anything is measured on the images that are kept beside calibration."""
    return (
        recipe.weight_rounding != "nearest"
        or (recipe.weight_correction != "none" and recipe.deployable)
        or (recipe.activation_correction != "none" and recipe.correction_source == "empirical")
        or recipe.batch_norm_reestimation
        or recipe.mixed_precision_criterion == "measured"
    )


def _assumes_a_density(recipe: Any) -> bool:
    """Whether bits are divided by an error that a distribution predicts."""
    predicted = recipe.mixed_precision != "none" and recipe.mixed_precision_criterion == "noise"
    return predicted or recipe.weight_allocation != "none" or recipe.activation_allocation != "none"

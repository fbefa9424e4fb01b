"""Bits divided among layers under a recipe's budgets, by predicted noise or by measured errors.
The choice itself is quantization/mixed_precision.py's and precision_program.py's; channels of one tensor: allocate.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from pytorch_quantizer.calibration.allocate import channel_scales, statistics_of
from pytorch_quantizer.calibration.calibrate import Statistics
from pytorch_quantizer.calibration.precision_budgets import bit_operations, mean_bits, weight_bytes
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.distributions import DISTRIBUTIONS
from pytorch_quantizer.quantization.mixed_precision import choose_widths
from pytorch_quantizer.quantization.precision_program import Budget, solve_widths
from pytorch_quantizer.quantization.qtypes import IntQuantizer
from pytorch_quantizer.quantization.recipe import Override, Recipe

MOST_BITS = 8  # of a layer whose tensor was asked for with fewer
WIDTHS = tuple(range(2, MOST_BITS + 1))  # that mixed precision chooses among

Errors = list[list[float]]  # a row a tensor, a column a width
MeasureErrors = Callable[[Sequence[str], Sequence[Recipe]], Errors]


@dataclass(frozen=True)
class Part:
    """A tensor that takes part. what: "weights" or "activations"; readers: those to override; values: how many it has.

    asked: its bits as the recipe has them. least: fewer it can't have, since a reader that isn't overridden asks for
    them.
    """

    site: Site
    what: str
    readers: tuple[str, ...]
    values: int
    asked: int
    least: int

    def allowed(self, errors: Sequence[float]) -> list[float]:
        """The errors, inf where a width is too few."""
        return [error if width >= self.least else math.inf for width, error in zip(WIDTHS, errors, strict=True)]

    def overrides(self, width: int) -> list[Override]:
        """One for each of its readers."""
        return [Override(reader, **{self.what: f"int{width}"}) for reader in self.readers]


def mix_precisions(
    graph: fx.GraphModule,
    sites: tuple[Site, ...],
    statistics: Statistics,
    recipe: Recipe,
    measure_errors: MeasureErrors | None = None,
) -> Recipe:
    """The recipe with an override for each layer whose bits differ from what it asks for, within its budgets.

    Weights: Σ n_l·M_l <= t·Σ n_l, n_l values of layer l, t the recipe's budget, or else Σ n_l·M, what the number types
    ask for. Activations: the same with the values of one image. mixed_precision_size and mixed_precision_bit_operations
    (precision_budgets.py) take that rule's place for what they limit, unless it is asked for by its own budget.
    Minimised is the sum over tensors of an error. Criterion noise: predicted error over variance, D(M_l)·Σa²/Σσ² with
    a = b or σ, since tensors of different layers have no scale in common. Criterion measured: what ``measure_errors``
    gives for their names and recipes, one a width (width_errors.py).
    A tensor that was asked for with 8 bits or more (the first and last layer's, residuals), or by an override, keeps
    its bits and takes no part. Raises InputError for a budget that can't be met, and for activations where no image
    told how large they are.
    """
    parts = list_parts(graph, sites, recipe)
    if parts:
        noise = recipe.mixed_precision_criterion == "noise"
        table = _noise_errors(graph, parts, statistics, recipe) if noise else _measured(parts, recipe, measure_errors)
        errors = [part.allowed(row) for part, row in zip(parts, table, strict=True)]
        widths = _choose(graph, sites, parts, errors, recipe)
    else:
        _check_others(graph, sites, recipe)
        widths = []
    added = [o for part, width in zip(parts, widths, strict=True) if width != part.asked for o in part.overrides(width)]
    defaults = {name: getattr(Recipe, name) for name in FIELDS}
    return recipe.replace(overrides=(*recipe.overrides, *added), **defaults)


FIELDS = (
    *("mixed_precision", "mixed_precision_budget", "mixed_precision_criterion"),
    *("mixed_precision_size", "mixed_precision_bit_operations"),
)


def list_parts(graph: fx.GraphModule, sites: Sequence[Site], recipe: Recipe) -> list[Part]:
    """The tensors among which bits are divided, weights first."""
    found = []
    if recipe.mixed_precision in ("weights", "both"):
        weights = [site for site in sites if site.kind == "weight" and _takes_part(site, recipe)]
        found += [_part(graph, site, "weights", site.consumers) for site in weights]
    if recipe.mixed_precision in ("activations", "both"):
        own = _own_readers(sites)
        tensors = [site for site in sites if site.kind in ("activation", "input") and _takes_part(site, recipe)]
        found += [_part(graph, site, "activations", own[site.name]) for site in tensors if own[site.name]]
    return found


def _part(graph: fx.GraphModule, site: Site, what: str, readers: Sequence[str]) -> Part:
    assert isinstance(site.quantizer, IntQuantizer)
    bits = site.quantizer.bits
    least = WIDTHS[0] if len(readers) == len(site.consumers) else bits
    return Part(site, what, tuple(readers), _values(graph, site), bits, least)


def _takes_part(site: Site, recipe: Recipe) -> bool:
    what, quantizer = "activations" if site.is_activation else "weights", site.quantizer
    if not isinstance(quantizer, IntQuantizer) or quantizer.bits not in WIDTHS[:-1] or site.is_wide:
        return False
    return all(getattr(given, what) is None for reader in site.consumers for given in recipe.matching(reader))


def _own_readers(sites: Sequence[Site]) -> dict[str, list[str]]:
    """By activation, the readers of it that read nothing else: an override of an addition would be one of both."""
    quantized = [site for site in sites if site.is_activation and site.quantizer is not None]
    reads = Counter(reader for site in quantized for reader in site.consumers)
    return {site.name: [reader for reader in site.consumers if reads[reader] == 1] for site in quantized}


def _noise_errors(graph: fx.GraphModule, parts: Sequence[Part], statistics: Statistics, recipe: Recipe) -> Errors:
    """Predicted error over variance of each at each width."""
    prior = recipe.allocation_prior
    unit = [DISTRIBUTIONS[prior].minimum_mse(width) for width in WIDTHS]
    errors = []
    for part in parts:
        assert isinstance(part.site.quantizer, IntQuantizer)
        seen = statistics_of(graph, part.site, part.site.quantizer, statistics)
        share = float(channel_scales(seen, prior).square().sum() / seen.variance.sum().clamp(min=1e-300))
        errors.append([share * error for error in unit])
    return errors


def _measured(parts: Sequence[Part], recipe: Recipe, measure_errors: MeasureErrors | None) -> Errors:
    if measure_errors is None:
        raise InputError("mixed_precision_criterion measured needs images: give calibration=, an iterable of batches")
    recipes = [
        recipe.replace(overrides=(*recipe.overrides, *(o for part in parts for o in part.overrides(width))))
        for width in WIDTHS
    ]
    return measure_errors([part.site.name for part in parts], recipes)


def _choose(
    graph: fx.GraphModule, sites: Sequence[Site], parts: Sequence[Part], errors: Errors, recipe: Recipe
) -> list[int]:
    """The width of each part."""
    rules = {what: _mean_limit(parts, errors, recipe, what) for what in ("weights", "activations")}
    if recipe.mixed_precision_size is None and recipe.mixed_precision_bit_operations is None:
        return _chosen_apart(parts, errors, rules)
    places = {part.site.name: place for place, part in enumerate(parts)}
    budgets = [_mean_budget(parts, places, what, limit) for what, limit in rules.items() if limit is not None]
    budgets += _other_budgets(graph, sites, places, recipe)
    return [WIDTHS[column] for column in solve_widths(errors, budgets)]


def _chosen_apart(parts: Sequence[Part], errors: Errors, rules: Mapping[str, float | None]) -> list[int]:
    """Weights and activations have a budget each: each is solved by itself, exactly."""
    widths: list[int] = []
    for what, limit in rules.items():
        rows = [row for part, row in zip(parts, errors, strict=True) if part.what == what]
        costs = [[float(part.values * width) for width in WIDTHS] for part in parts if part.what == what]
        if rows and limit is not None:
            widths += [WIDTHS[column] for column in choose_widths(torch.tensor(rows), torch.tensor(costs), limit)]
    return widths


def _mean_budget(parts: Sequence[Part], places: Mapping[str, int], what: str, limit: float) -> Budget:
    mine = {part.site.name: part.values for part in parts if part.what == what}
    return mean_bits(
        f"bits of {what}", {name: place for name, place in places.items() if name in mine}, mine, WIDTHS, limit
    )


def _other_budgets(
    graph: fx.GraphModule, sites: Sequence[Site], places: Mapping[str, int], recipe: Recipe
) -> list[Budget]:
    budgets = []
    if recipe.mixed_precision_size is not None:
        budgets.append(weight_bytes(graph, sites, places, WIDTHS, recipe.mixed_precision_size))
    if recipe.mixed_precision_bit_operations is not None:
        budgets.append(bit_operations(graph, sites, places, WIDTHS, recipe.mixed_precision_bit_operations))
    return budgets


def _check_others(graph: fx.GraphModule, sites: Sequence[Site], recipe: Recipe) -> None:
    """Raise InputError where nothing takes part and a budget isn't kept as it is."""
    for budget in _other_budgets(graph, sites, {}, recipe):
        if budget.fixed > budget.limit:
            why = f"for no tensor takes part that was asked for with fewer than {MOST_BITS} bits"
            raise budget.short_of(budget.fixed, why)


def _mean_limit(parts: Sequence[Part], errors: Errors, recipe: Recipe, what: str) -> float | None:
    """Bits of all values together, None where another budget limits these; InputError where it can't be met."""
    mine = [(part, row) for part, row in zip(parts, errors, strict=True) if part.what == what]
    other = recipe.mixed_precision_bit_operations is not None
    other |= what == "weights" and recipe.mixed_precision_size is not None
    budget = recipe.mixed_precision_budget
    if not mine or (other and budget is None):
        return None
    least = [next(width for width, error in zip(WIDTHS, row, strict=True) if error < math.inf) for _, row in mine]
    values = sum(part.values for part, _ in mine)
    needed = sum(part.values * width for (part, _), width in zip(mine, least, strict=True)) / values
    if budget is not None and budget < needed:
        raise InputError(
            f"mixed_precision_budget must be at least {math.ceil(100 * needed - 1e-6) / 100:.2f} bits a value for "
            f"these {what}, of which those that an addition reads too keep their bits; got {budget:g}"
        )
    return sum(part.values * (budget or part.asked) for part, _ in mine)


def _values(graph: fx.GraphModule, site: Site) -> int:
    """How many values a weight has, or an activation of one image. Raises InputError where no image told its shape."""
    if not site.is_activation:
        return graph.get_parameter(site.node).numel()
    shape = next(node.meta.get("shape") for node in graph.graph.nodes if node.name == site.node)
    if shape is None:
        raise InputError(
            f"mixed_precision: how many values {site.name} has isn't known without images: give calibration=, an "
            "iterable of image batches"
        )
    return math.prod(shape[1:])

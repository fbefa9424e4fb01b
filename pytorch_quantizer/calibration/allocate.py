"""Bits divided among channels, and among layers, by what calibration saw of them.
The division itself is quantization/bit_allocation.py's; which tensors there are is graph/place.py's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pytorch_quantizer.calibration.calibrate import Statistics, statistics_key
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.bit_allocation import allocate_bits, midtread_levels
from pytorch_quantizer.quantization.distributions import DISTRIBUTIONS
from pytorch_quantizer.quantization.mixed_precision import choose_widths
from pytorch_quantizer.quantization.qtypes import IntQuantizer
from pytorch_quantizer.quantization.qtypes.allocated_quantizer import AllocatedQuantizer, MidTreadQuantizer
from pytorch_quantizer.quantization.recipe import Override, Recipe
from pytorch_quantizer.quantization.statistics import TensorStatistics

MOST_BITS = 8  # of a channel or a layer whose tensor was asked for with fewer
WIDTHS = tuple(range(2, MOST_BITS + 1))  # that mixed precision chooses among


def allocate_channels(
    graph: fx.GraphModule, sites: tuple[Site, ...], statistics: Statistics, recipe: Recipe
) -> tuple[Site, ...]:
    """The sites, per-channel integer quantizers replaced by allocated ones where the recipe says so, unfitted.

    Each tensor keeps its own mean bits: channels of one tensor share them by their b or σ (recipe.allocation_prior).
    Quota "midtread" shares levels instead, any whole number of them, 2^bits on average.
    Raises InputError that names the tensor whose quota can't be met.
    """
    quotas: dict[bool, Any] = {True: recipe.activation_allocation, False: recipe.weight_allocation}

    def allocated(site: Site) -> Site:
        quantizer, quota = site.quantizer, quotas[site.is_activation]
        if quota == "none" or not isinstance(quantizer, IntQuantizer) or quantizer.axis is None:
            return site
        scales = channel_scales(_statistics_of(graph, site, quantizer, statistics), recipe.allocation_prior)
        try:
            return site.with_quantizer(_allocated(quantizer, scales, quota, recipe.allocation_prior))
        except InputError as error:
            raise InputError(f"{site.name}: {error}") from error

    return tuple(allocated(site) for site in sites)


def channel_scales(statistics: TensorStatistics, prior: str) -> Tensor:
    """[C]: b = E|x − μ| (laplace) or σ (gaussian) of each channel."""
    return statistics.abs_dev if prior == "laplace" else statistics.variance.sqrt()


def mix_precisions(graph: fx.GraphModule, sites: tuple[Site, ...], statistics: Statistics, recipe: Recipe) -> Recipe:
    """The recipe with an override for each layer whose bits differ from what it asks for, within its budget.

    Weights: Σ n_l·M_l <= t·Σ n_l, n_l values of layer l, t the recipe's budget, or else Σ n_l·M, what the number types
    ask for. Activations: the same with the values of one image. Minimised is the sum over tensors of predicted error
    over variance, D(M_l)·Σa²/Σσ² with a = b or σ: noise to signal, since tensors of different layers have no scale in
    common. A tensor that was asked for with 8 bits or more (the first and last layer's, residuals), or by an override,
    keeps its bits and takes no part. Raises InputError for a budget that can't be met, and for activations where no
    image told how large they are.
    """
    overrides = list(recipe.overrides)
    if recipe.mixed_precision in ("weights", "both"):
        chosen = [site for site in sites if site.kind == "weight" and _takes_part(site, recipe)]
        overrides += _overrides(graph, chosen, statistics, recipe, "weights")
    if recipe.mixed_precision in ("activations", "both"):
        chosen = [site for site in sites if site.kind in ("activation", "input") and _takes_part(site, recipe)]
        own = _own_readers(sites)
        chosen = [site for site in chosen if own[site.name]]
        overrides += _overrides(graph, chosen, statistics, recipe, "activations", own)
    return recipe.replace(overrides=tuple(overrides), mixed_precision="none", mixed_precision_budget=None)


def _takes_part(site: Site, recipe: Recipe) -> bool:
    what, quantizer = "activations" if site.is_activation else "weights", site.quantizer
    if not isinstance(quantizer, IntQuantizer) or quantizer.bits not in WIDTHS[:-1] or site.is_wide:
        return False
    return all(getattr(given, what) is None for reader in site.consumers for given in recipe.matching(reader))


def _own_readers(sites: tuple[Site, ...]) -> dict[str, list[str]]:
    """By activation, the readers of it that read nothing else: an override of an addition would be one of both."""
    quantized = [site for site in sites if site.is_activation and site.quantizer is not None]
    reads = Counter(reader for site in quantized for reader in site.consumers)
    return {site.name: [reader for reader in site.consumers if reads[reader] == 1] for site in quantized}


def _overrides(
    graph: fx.GraphModule,
    sites: list[Site],
    statistics: Statistics,
    recipe: Recipe,
    what: str,
    own: Mapping[str, list[str]] | None = None,
) -> Iterable[Override]:
    """One for each reader of each tensor whose bits change.

    own: by tensor, the readers to override, where they aren't all. The others keep asking for what they asked, so that
    the tensor can't have fewer bits: it has the most that anyone asks for.
    """
    if not sites:
        return []
    prior = recipe.allocation_prior
    unit = [DISTRIBUTIONS[prior].minimum_mse(width) for width in WIDTHS]
    errors, sizes, asked = [], [], []
    readers: list[Sequence[str]] = []
    for site in sites:
        quantizer = site.quantizer
        assert isinstance(quantizer, IntQuantizer)
        seen = _statistics_of(graph, site, quantizer, statistics)
        share = float(channel_scales(seen, prior).square().sum() / seen.variance.sum().clamp(min=1e-300))
        readers.append(site.consumers if own is None else own[site.name])
        least = WIDTHS[0] if len(readers[-1]) == len(site.consumers) else quantizer.bits
        errors.append(
            [share * error if width >= least else math.inf for width, error in zip(WIDTHS, unit, strict=True)]
        )
        sizes.append(_values(graph, site))
        asked.append(quantizer.bits)
    _check_budget(recipe, errors, sizes, what)
    costs = [[size * width for width in WIDTHS] for size in sizes]
    budget = sum(size * (recipe.mixed_precision_budget or bits) for size, bits in zip(sizes, asked, strict=True))
    widths = [WIDTHS[index] for index in choose_widths(torch.tensor(errors), torch.tensor(costs), budget)]
    return [
        Override(reader, **{what: f"int{width}"})
        for named, width, bits in zip(readers, widths, asked, strict=True)
        if width != bits
        for reader in named
    ]


def _check_budget(recipe: Recipe, errors: list[list[float]], sizes: list[int], what: str) -> None:
    """Raise InputError where the recipe's budget is below what all tensors take at their least."""
    least = [next(w for w, error in zip(WIDTHS, row, strict=True) if error < math.inf) for row in errors]
    needed = sum(size * width for size, width in zip(sizes, least, strict=True)) / sum(sizes)
    if recipe.mixed_precision_budget is not None and recipe.mixed_precision_budget < needed:
        raise InputError(
            f"mixed_precision_budget must be at least {needed:.2f} bits a value for these {what}, of which those that "
            f"an addition reads too keep their bits; got {recipe.mixed_precision_budget:g}"
        )


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


def _statistics_of(
    graph: fx.GraphModule, site: Site, quantizer: IntQuantizer, statistics: Statistics
) -> TensorStatistics:
    if site.is_activation:
        return statistics[statistics_key(site)]
    return TensorStatistics.from_tensor(graph.get_parameter(site.node).detach(), axis=quantizer.axis)


def _allocated(quantizer: IntQuantizer, scales: Tensor, quota: Any, prior: str) -> AllocatedQuantizer:
    """The same grid with other bits a channel, or (quota "midtread") other whole numbers of levels."""
    assert quantizer.axis is not None
    settings: dict[str, Any] = {
        name: getattr(quantizer, name) for name in ("axis", "clip", "domain", "across_batches", "rounding", "seed")
    }
    if quota == "midtread":
        signed = quantizer.domain.support == "real"
        levels = midtread_levels(scales, quantizer.bits, odd=signed)
        return MidTreadQuantizer(levels, signed=signed, **settings)
    settings |= {name: getattr(quantizer, name) for name in ("signed", "narrow", "symmetric")}
    most = max(MOST_BITS, quantizer.bits)
    return AllocatedQuantizer(
        allocate_bits(scales, quantizer.bits, distribution=prior, quota=quota, maximum=most), **settings
    )

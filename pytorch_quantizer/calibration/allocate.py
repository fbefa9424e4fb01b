"""Bits divided among a tensor's channels by what calibration saw of them; among layers: mix_precisions.py.
The division itself is quantization/bit_allocation.py's; which tensors there are is graph/place.py's.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from pytorch_quantizer.calibration.calibrate import Statistics, statistics_key
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.bit_allocation import allocate_bits, midtread_levels
from pytorch_quantizer.quantization.qtypes import IntQuantizer
from pytorch_quantizer.quantization.qtypes.allocated_quantizer import AllocatedQuantizer
from pytorch_quantizer.quantization.qtypes.mid_tread_quantizer import MidTreadQuantizer
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantization.statistics import TensorStatistics

MOST_BITS = 8  # of a channel whose tensor was asked for with fewer


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
        scales = channel_scales(statistics_of(graph, site, quantizer, statistics), recipe.allocation_prior)
        try:
            return site.with_quantizer(_allocated(quantizer, scales, quota, recipe.allocation_prior))
        except InputError as error:
            raise InputError(f"{site.name}: {error}") from error

    return tuple(allocated(site) for site in sites)


def channel_scales(statistics: TensorStatistics, prior: str) -> Tensor:
    """[C]: b = E|x − μ| (laplace) or σ (gaussian) of each channel."""
    return statistics.abs_dev if prior == "laplace" else statistics.variance.sqrt()


def statistics_of(
    graph: fx.GraphModule, site: Site, quantizer: IntQuantizer, statistics: Statistics
) -> TensorStatistics:
    """What calibration saw of an activation; of a weight, its values'."""
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

"""Quantizers fitted to what calibration saw: activations to statistics, weights to their values or to their outputs.
How a range is chosen is quantization/'s business.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx

from pytorch_quantizer.calibration.calibrate import Statistics, statistics_key
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.output_error import output_mse_range
from pytorch_quantizer.quantization.qparams import GridSpec
from pytorch_quantizer.quantization.qtypes import IntQuantizer, Quantizer


def fit(
    graph: fx.GraphModule,
    sites: tuple[Site, ...],
    statistics: Statistics,
    moments: Mapping[str, Tensor] | None = None,
) -> tuple[Site, ...]:
    """Fit each site's quantizer, weights to their values, activations to their statistics; the same sites come back.

    moments: by weight, the second moments of its layer's inputs (output_error.py), where its range is chosen by them.
    Raises InputError that names the tensor whose values don't allow a range.
    """
    for site in sites:
        if site.quantizer is None:
            continue
        try:
            if site.is_activation or site.kind == "state":
                _fit_activation(site, site.quantizer, statistics)
            else:
                _fit_weight(graph, site, site.quantizer, moments or {})
        except InputError as error:
            raise InputError(f"{site.name}: {error}") from error
    return sites


def _fit_activation(site: Site, quantizer: Quantizer, statistics: Statistics) -> None:
    if quantizer.needs_statistics:
        key = statistics_key(site)
        if key not in statistics:
            raise InputError("the statistics hold nothing of it; collect them with this recipe")
        quantizer.fit(statistics[key])


def _fit_weight(graph: fx.GraphModule, site: Site, quantizer: Quantizer, moments: Mapping[str, Tensor]) -> None:
    weight = graph.get_parameter(site.node).detach()
    quantizer.fit(weight)  # also where its outputs decide: it refuses what has no range at all
    if site.node in moments and isinstance(quantizer, IntQuantizer):
        grid = GridSpec(quantizer.bits, quantizer.signed, quantizer.symmetric, quantizer.narrow)
        lo, hi = output_mse_range(weight, moments[site.node], grid, axis=quantizer.axis)
        quantizer.qparams = grid.over(lo, hi, quantizer.axis)

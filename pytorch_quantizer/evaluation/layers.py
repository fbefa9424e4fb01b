"""What quantization does to each tensor: how much is clipped, and the signal-to-quantization-noise ratio.
What it does to the answers is metrics.py's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from pytorch_quantizer.evaluation.distributions import bins_of_each, distribution
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.fold import fold
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.entropy import entropy_of
from pytorch_quantizer.quantization.qtypes import Quantizer


class LayerMeasures(NamedTuple):
    """What measure_layers found. table: layer_table's. distributions: of each quantized tensor, distributions.py's."""

    table: pd.DataFrame
    distributions: list[dict[str, Any]]


def layer_table(
    quantized: QuantizedModel, reference: nn.Module, images: Tensor, *, progress: bool = True
) -> pd.DataFrame:
    """``quantized.table()`` with four columns more, measured against the float model on ``images`` [N, C, H, W].

    clipped_fraction: the float tensor's values more than half a step outside the range. sqnr_db: the tensor's own
    quantization alone, 10·log10(Σx² / Σ(x − q(x))²). accumulated_sqnr_db: the simulated model's tensor against the
    float model's, all quantization before it included. entropy_bits: bits per value of its codes after an ideal
    variable-length code (quantization/entropy.py). Empty where a tensor isn't quantized, and for the state of a
    recurrent layer, which has a range at each time step; infinite where nothing is lost.
    """
    return measure_layers(quantized, reference, images, progress=progress).table


def measure_layers(
    quantized: QuantizedModel, reference: nn.Module, images: Tensor, *, progress: bool = True
) -> LayerMeasures:
    """layer_table, and in the same pass how the values of each quantized tensor are distributed over its grid."""
    graph, _ = fold(capture(reference, images[:1]))
    nodes = {site.node for site in quantized.sites if site.is_activation and site.quantizer is not None}
    steps = len(graph.graph.nodes) + len(quantized.graph.nodes) + len(quantized.sites)
    with tqdm(desc="layers", unit="step", total=steps, delay=1, disable=not progress, leave=False) as bar:
        expected, simulated = _values(graph, nodes, images, bar), _values(quantized, nodes, images, bar)
        rows, distributions = [], []
        bins = bins_of_each(len(quantized.sites))
        for site in quantized.sites:
            pair = _before_and_after(site, graph, quantized, expected, simulated)
            rows.append(_measured(site.quantizer, pair))
            if site.quantizer is not None and pair is not None and site.kind != "bias":
                distributions.append(distribution(site.name, site.kind, site.quantizer, pair[0], bins))
            bar.update()
    return LayerMeasures(pd.concat([quantized.table(), pd.DataFrame(rows)], axis=1), distributions)


@torch.no_grad()
def sqnr_db(x: Tensor, y: Tensor) -> float:
    """10·log10(Σx² / Σ(x − y)²) in decibels, any shape; inf where y equals x."""
    signal, noise = float(x.double().square().sum()), float((x.double() - y.double()).square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def clipped_fraction(quantizer: Quantizer, x: Tensor) -> float:
    """The fraction of x's values more than half a step outside the quantizer's range; per channel along its axis.

    Nearer ones lose no more than rounding costs any value: a range moves by as much to put zero on its grid. Types
    without one step have no such margin; of k-means everything beyond the outermost centres counts.
    """
    low, high = quantizer.range()
    if quantizer.scale is not None:
        low, high = low - quantizer.scale / 2, high + quantizer.scale / 2
    axis = getattr(quantizer, "axis", None) or 0
    if low.dim():
        shape = [-1 if dim == axis else 1 for dim in range(x.dim())]
        low, high = low.reshape(shape), high.reshape(shape)
    return float(((x < low) | (x > high)).double().mean())


def _before_and_after(
    site: Site,
    graph: fx.GraphModule,
    quantized: QuantizedModel,
    expected: dict[str, Tensor],
    simulated: dict[str, Tensor],
) -> tuple[Tensor, Tensor] | None:
    """The tensor of the float model, and the simulated model's; None where it isn't measured."""
    if site.quantizer is None or site.kind == "state":
        return None
    if site.is_activation:
        return expected[site.node], site.quantizer(simulated[site.node])
    return graph.get_parameter(site.node).detach(), quantized.get_parameter(site.node).detach()


def _measured(quantizer: Quantizer | None, pair: tuple[Tensor, Tensor] | None) -> dict[str, float | None]:
    if quantizer is None or pair is None:
        return dict.fromkeys(("clipped_fraction", "sqnr_db", "accumulated_sqnr_db", "entropy_bits"))
    before, after = pair
    return {
        "clipped_fraction": clipped_fraction(quantizer, before),
        "sqnr_db": sqnr_db(before, quantizer(before)),
        "accumulated_sqnr_db": sqnr_db(before, after),
        "entropy_bits": entropy_of(quantizer, before),
    }


class _Keeper(fx.Interpreter):
    """Runs a graph and keeps copies of some nodes' values: a quantizer may overwrite the original."""

    def __init__(self, graph: fx.GraphModule, nodes: set[str], bar: tqdm[Any]) -> None:
        super().__init__(graph)
        self.nodes, self.values, self.bar = nodes, dict[str, Tensor](), bar

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.bar.update()
        if n.name in self.nodes:
            self.values[n.name] = value.clone()
        return value


@torch.no_grad()
def _values(graph: fx.GraphModule, nodes: Iterable[str], images: Tensor, bar: tqdm[Any]) -> dict[str, Tensor]:
    keeper = _Keeper(graph, set(nodes), bar)
    keeper.run(images)
    return keeper.values

"""What each width of a weight or a tensor costs: the network's outputs with that one alone on its grid, all else float.
Which widths are then taken is mix_precisions.py's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from tqdm import tqdm

from pytorch_quantizer.calibration.fit import fit
from pytorch_quantizer.calibration.measured import Measured
from pytorch_quantizer.calibration.memory import Need, release_memory, width_bytes
from pytorch_quantizer.calibration.stepper import Stepper
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.insert import insert
from pytorch_quantizer.graph.place import place
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.share import copy_sharing
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.recipe import Recipe

LEFT_OUT = "left in float while another is measured"
AT_ONCE = 4  # sites whose trials, a graph for each width, are held: the float network is computed once for all of them


@torch.no_grad()
def width_errors(
    graph: fx.GraphModule,
    measured: Measured,
    reasons: dict[str, str],
    names: Sequence[str],
    recipes: Sequence[Recipe],
    *,
    progress: bool = True,
) -> list[list[float]]:
    """For each of ``names``, sites, the error of the float graph's outputs with it on the grid of each recipe.

    Of logits [N, C] the Kullback-Leibler divergence from the float network's, in nats, the mean over the images; of
    other outputs Σ(q − f)² / Σf². measured: statistics that grids are fitted to, and images. reasons: as for place.
    What lies before a site is computed once a batch for AT_ONCE of them.
    Raises InputError where there is no image, for a network that returns several tensors, and where the limit of
    memory that ``measured`` has is less than this takes.
    """
    if not measured.images:
        raise InputError("mixed_precision_criterion measured needs images: give calibration=, an iterable of batches")
    measured.limit.require(_need(graph, measured.images, len(recipes)))
    moments = measured.moments()
    placements = [fit(graph, place(graph, recipe, reasons), measured.statistics, moments) for recipe in recipes]
    errors: list[list[float]] = []
    steps = len(measured.images) * len(names)
    bar = tqdm(desc="measuring widths", total=steps, delay=1, disable=not progress, leave=False)
    with bar:
        for start in range(0, len(names), AT_ONCE):
            trials = [
                [_Trial(graph, sites, name, measured.recipe) for sites in placements]
                for name in names[start : start + AT_ONCE]
            ]
            errors += _errors(graph, trials, measured.images, bar)
            del trials
            if measured.limit.bytes is not None:
                release_memory(cycles=True)
    return errors


def _need(graph: fx.GraphModule, images: Sequence[Tensor], widths: int) -> Need:
    counts = [len(batch) for batch in images]
    fewer = [
        *(["smaller batches"] if max(counts) > 1 else []),
        *(["fewer correction_images"] if sum(counts) > 1 else []),
    ]
    remedy = f"{' or '.join(fewer)} take less" if fewer else ""
    return Need(width_bytes(graph, images, widths, AT_ONCE * widths), "measuring what widths cost", remedy)


def _errors(
    graph: fx.GraphModule, trials: Sequence[Sequence[_Trial]], batches: Sequence[Tensor], bar: Any
) -> list[list[float]]:
    """The error of each trial, the mean over the images."""
    returned, count = _returned(graph), sum(map(len, batches))
    errors = [[0.0] * len(row) for row in trials]
    for images in batches:
        values = _values(graph, images)
        for row, trial_row in zip(errors, trials, strict=True):
            for column, trial in enumerate(trial_row):
                row[column] += output_error(values[returned], trial.output(values)) * len(images) / count
            bar.update()
    return errors


def output_error(expected: Tensor, found: Tensor) -> float:
    """KL(softmax(expected) ‖ softmax(found)), the mean over rows, of logits [N, C]; else Σ(q − f)² / Σf²."""
    expected, found = expected.double(), found.double()
    if expected.dim() == 2 and expected.shape[1] > 1:
        divergence = F.kl_div(found.log_softmax(1), expected.log_softmax(1), log_target=True, reduction="batchmean")
        return max(float(divergence), 0.0)
    return float((found - expected).square().sum() / expected.square().sum().clamp(min=1e-300))


def _returned(graph: fx.GraphModule) -> str:
    """The name of the node whose value the network returns. Raises InputError where it returns several."""
    returned = next(iter(reversed(graph.graph.nodes))).args[0]
    if not isinstance(returned, fx.Node):
        raise InputError("mixed_precision_criterion measured needs a network with one output: set the criterion noise")
    return str(returned.name)


def _values(graph: fx.GraphModule, images: Tensor) -> dict[str, Tensor]:
    """Every node's value, by name."""
    stepper = Stepper(graph, [images])
    return {node.name: stepper.step(node)[0] for node in graph.graph.nodes if node.op != "output"}


class _Trial:
    """The network with one site on its grid and all others in float."""

    def __init__(self, graph: fx.GraphModule, sites: tuple[Site, ...], name: str, recipe: Recipe) -> None:
        alone = tuple(site if site.name == name else _in_float(site) for site in sites)
        self.model: QuantizedModel = insert(copy_sharing(graph), alone, recipe, inplace=True)
        self.interpreter = fx.Interpreter(self.model)
        changed = {node for node in self.model.graph.nodes if self._is_changed(graph, node, alone)}
        for node in self.model.graph.nodes:
            if any(source in changed for source in node.all_input_nodes):
                changed.add(node)
        self.same = [node for node in self.model.graph.nodes if node not in changed]

    def _is_changed(self, graph: fx.GraphModule, node: fx.Node, sites: tuple[Site, ...]) -> bool:
        """Whether a node isn't in the float graph, or calls the layer whose weight is on its grid."""
        quantized = {site.node.removesuffix(".weight") for site in sites if site.quantizer and site.kind == "weight"}
        names = {other.name for other in graph.graph.nodes}
        return node.name not in names or (node.op == "call_module" and str(node.target) in quantized)

    def output(self, values: dict[str, Tensor]) -> Tensor:
        """The network's output, from the values of the float network's nodes where nothing is changed."""
        known = {node: values[node.name] for node in self.same if node.name in values}
        found: Tensor = self.interpreter.run(initial_env=known)
        return found


def _in_float(site: Site) -> Site:
    return site if site.quantizer is None else replace(site, quantizer=None, reason=LEFT_OUT)

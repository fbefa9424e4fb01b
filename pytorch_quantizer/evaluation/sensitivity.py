"""Which layer quantization hurts: each quantized alone, and all but it, against the float network.
What one tensor loses by itself is layers.py's business; the pictures are reports/layers.py's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from pytorch_quantizer.calibration.calibrate import device_of, images_of
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation.layers import sqnr_db
from pytorch_quantizer.evaluation.metrics import Evaluation, evaluate
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.fold import fold
from pytorch_quantizer.graph.insert import insert
from pytorch_quantizer.graph.operations import is_arithmetic, label, layer_of, recurrence_of
from pytorch_quantizer.graph.site import WIDE, Site
from pytorch_quantizer.quantization.idle_fields import without_idle
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantize import EXAMPLES, quantize

WHATS = ("both", "weights", "activations")
CORRECTIONS = (
    *("equalize", "weight_rounding", "weight_correction", "activation_correction", "batch_norm_reestimation"),
    *("reconstruction", "tuning_epochs"),
)
SIGNIFICANT = 0.01  # a p-value: one layer in a hundred that does no harm seems to
LEFT_OUT = "left in float by the diagnosis"
Readings = frozenset[tuple[str, str]]  # (a site, who reads it)


def sensitivity(
    model: nn.Module,
    recipe: Recipe | str,
    calibration: Iterable[Any] | None,
    loader: Iterable[Any],
    *,
    what: str = "both",
    strict: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """A row for every layer, and every operation that reads quantized tensors, the one that hurts most first.

    recipe, calibration, strict: as for quantize(), which runs once; every variant of the network reuses the quantizers
    it fitted. loader: batches (images [N, …], labels [N]), held in memory. what: a layer's "weights", the tensors it
    reads ("activations"), or both; the other kind stays in float throughout.

    Columns: layer; weights and activations, their types; tensors, those that it reads, by name. alone_top1 and
    alone_sqnr_db: this layer quantized, all else float; all_but_top1 and all_but_sqnr_db: the other way round.
    alone_drop = float_top1 − alone_top1; all_but_gain = all_but_top1 − quantized_top1. Rates are fractions of 1; SQNR
    is that of all logits, 10·log10(Σf² / Σ(f − q)²), infinite where nothing is lost. alone_p: how likely chance alone
    makes answers differ this way, right to wrong against wrong to right (McNemar's exact test, two-sided).
    Ranked: drops that chance hardly explains (alone_p < SIGNIFICANT) by size, then the rest by alone_sqnr_db.
    ``attrs`` holds samples, float_top1, and quantized_top1 and quantized_sqnr_db, of all layers quantized.

    A tensor that several read is quantized for this one alone, so that rows don't overlap: a convolution and the
    addition beside it are told apart. (An override widens such a tensor for all that read it, and may gain more.) Two
    rows take all readers along: a concatenation's holds its result, on whose grid its parts live, and a layer called
    several times has one weight. A bias is int32 only where its layer's weight and input both have grids, so it stays
    float where either is left out. Corrections and what learns (CORRECTIONS) fit the network as a whole and are left
    out here.
    Raises InputError as quantize and evaluate do, for an unknown ``what``, and where nothing is quantized.
    """
    if what not in WHATS:
        raise InputError(f"what must be one of {', '.join(WHATS)}, got {what!r}")
    recipe = without_corrections(recipe if isinstance(recipe, Recipe) else Recipe.load(recipe))
    quantized = quantize(model, recipe, calibration, strict=strict, progress=progress)
    batches = list(loader)
    graph, _ = fold(capture(model, _example(model, batches)))
    sites = tuple(site for site in quantized.sites if site.kind != "bias")
    readers = [reader for reader in _readers(graph, sites, what) if reader.is_layer or reader.reads]
    everything = Readings().union(*(reader.reads for reader in readers))
    if not everything:
        raise InputError(f"recipe {recipe.name!r} quantizes no {'layer' if what == 'both' else what}: nothing to rank")
    runs = 2 + 2 * sum(bool(reader.reads) for reader in readers)
    with tqdm(desc="sensitivity", unit="network", total=runs, delay=1, disable=not progress, leave=False) as bar:
        trials = _Trials(graph, sites, recipe, batches, bar)
        whole = trials.outcome(everything)
        rows = [_row(reader, trials, everything, whole) for reader in readers]
    table = ranked(pd.DataFrame(rows))
    table.attrs = {"samples": trials.samples, "float_top1": trials.float_top1}
    table.attrs |= {"quantized_top1": whole.top1, "quantized_sqnr_db": whole.sqnr_db}
    return table


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """The rows, the layer that hurts most first: see sensitivity()."""
    counts = (table["alone_p"] < SIGNIFICANT) & (table["alone_drop"] > 0)
    order = table.assign(counted=table["alone_drop"].where(counts, 0.0))
    order = order.sort_values(["counted", "alone_sqnr_db"], ascending=[False, True], kind="stable", ignore_index=True)
    return order.drop(columns="counted")


def without_corrections(recipe: Recipe) -> Recipe:
    """The same without what would be fitted to the quantized network as a whole, and without the settings of that."""
    defaults = {entry.name: entry.default for entry in fields(Recipe)}
    return without_idle(recipe.replace(**{name: defaults[name] for name in CORRECTIONS}))


def corrections_of(recipe: Recipe) -> list[str]:
    """The names of the fields that without_corrections changes."""
    plain = without_corrections(recipe)
    return [name for name in CORRECTIONS if getattr(plain, name) != getattr(recipe, name)]


@dataclass(frozen=True)
class _Reader:
    """A layer, or an operation that reads tensors in integers, with the quantized sites that concern it."""

    name: str
    is_layer: bool
    weights: tuple[Site, ...]
    tensors: tuple[Site, ...]

    @property
    def reads(self) -> Readings:
        """What it takes part in: its own reading, or all readings where a site can't be split."""
        mine = {(site.name, self.name) for site in self.tensors if self.name in site.consumers}
        whole = [site for site in (*self.weights, *self.tensors) if (site.name, self.name) not in mine]
        return Readings(mine) | {(site.name, consumer) for site in whole for consumer in site.consumers}


class _Outcome(NamedTuple):
    top1: float
    sqnr_db: float
    p: float  # of McNemar's test against the float network


class _Recorded(nn.Module):
    """A network that keeps the logits it gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.logits = network, list[Tensor]()
        self.eval()

    def forward(self, x: Tensor) -> Any:
        logits = self.network(x)
        self.logits += [logits.detach().cpu()] if isinstance(logits, Tensor) else []
        return logits


class _Trials:
    """The float network on some images, and what becomes of its answers where some of its sites are quantized."""

    def __init__(
        self, graph: fx.GraphModule, sites: tuple[Site, ...], recipe: Recipe, batches: list[Any], bar: tqdm[Any]
    ) -> None:
        self.graph, self.sites, self.recipe, self.batches, self.bar = graph, sites, recipe, batches, bar
        self.float_evaluation, self.float_logits = self._run(graph)
        self.float_top1, self.samples = self.float_evaluation.top1, self.float_evaluation.samples

    def outcome(self, readings: Readings) -> _Outcome:
        """With these readings quantized and all others in float."""
        if not readings:
            return _Outcome(self.float_top1, math.inf, 1.0)
        evaluation, logits = self._run(insert(self.graph, quantized_only(self.sites, readings), self.recipe))
        p = chance(_right(self.float_evaluation), _right(evaluation))
        return _Outcome(evaluation.top1, sqnr_db(self.float_logits, logits), p)

    def _run(self, network: nn.Module) -> tuple[Evaluation, Tensor]:
        recorded = _Recorded(network)
        evaluation = evaluate(recorded, self.batches, progress=False)
        self.bar.update()
        return evaluation, torch.cat(recorded.logits)


def _right(evaluation: Evaluation) -> Tensor:
    return evaluation.predictions == evaluation.labels


def chance(before: Tensor, after: Tensor) -> float:
    """McNemar's exact two-sided p-value that ``before`` and ``after``, bool [N], are right equally often."""
    from scipy.stats import binomtest

    lost, won = int((before & ~after).sum()), int((after & ~before).sum())
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def quantized_only(sites: tuple[Site, ...], readings: Readings) -> tuple[Site, ...]:
    """The sites, quantized for these readings alone; quantizers that stay are copies.

    A tensor that some of its readers are to see in float is inserted as wide residuals are: for its readers alone.
    So is one whose wide twin isn't whole, lest the additions that lost it read the narrow one.
    """
    by_site = {site.name: tuple(c for c in site.consumers if (site.name, c) in readings) for site in sites}
    unwidened = {s.node for s in sites if s.is_wide and s.quantizer is not None and by_site[s.name] != s.consumers}

    def chosen(site: Site) -> Site:
        left = by_site[site.name]
        if site.quantizer is None:
            return site
        if not left:
            return replace(site, quantizer=None, reason=LEFT_OUT)
        copied = replace(site, quantizer=copy.deepcopy(site.quantizer))
        if left == site.consumers and site.node not in unwidened:
            return copied
        return replace(copied, name=site.name.removesuffix(WIDE) + WIDE, consumers=left)

    return tuple(chosen(site) for site in sites)


def _example(model: nn.Module, batches: list[Any]) -> Tensor:
    if not batches:
        raise InputError("nothing to evaluate: the loader gave no images")
    return next(images_of(batches, device_of(model)))[:EXAMPLES]


def _readers(graph: fx.GraphModule, sites: tuple[Site, ...], what: str) -> Iterator[_Reader]:
    """Every layer's call and all arithmetic, in the order of execution."""
    by_name = {site.name: site for site in sites}

    def grid_of(site: Site) -> Site:
        return site if site.carrier is None else grid_of(by_name[site.carrier])

    for node in graph.graph.nodes:
        is_layer = layer_of(graph, node) is not None or recurrence_of(graph, node) is not None
        if not is_layer and not is_arithmetic(graph, node):
            continue
        mine = [site for site in sites if label(node) in site.consumers]
        weights = [site for site in mine if site.kind == "weight" and what != "activations"]
        tensors = [grid_of(site) for site in mine if (site.is_activation or site.kind == "state") and what != "weights"]
        yield _Reader(label(node), is_layer, _quantized(weights), _quantized(tensors))


def _quantized(sites: Iterable[Site]) -> tuple[Site, ...]:
    """Those that have a quantizer, each once."""
    return tuple({site.name: site for site in sites if site.quantizer is not None}.values())


def _row(reader: _Reader, trials: _Trials, everything: Readings, whole: _Outcome) -> dict[str, Any]:
    alone = trials.outcome(reader.reads)
    all_but = trials.outcome(everything - reader.reads) if reader.reads else whole
    return {
        "layer": reader.name,
        "weights": _types(reader.weights) if reader.is_layer else "",
        "activations": _types(reader.tensors),
        "tensors": ", ".join(site.name for site in reader.tensors),
        "alone_top1": alone.top1,
        "alone_sqnr_db": alone.sqnr_db,
        "alone_drop": trials.float_top1 - alone.top1,
        "alone_p": alone.p,
        "all_but_top1": all_but.top1,
        "all_but_sqnr_db": all_but.sqnr_db,
        "all_but_gain": all_but.top1 - whole.top1,
    }


def _types(sites: Iterable[Site]) -> str:
    """The number types, each once; float32 where there is none."""
    types = dict.fromkeys(site.quantizer.describe() for site in sites if site.quantizer is not None)
    return ", ".join(types) or "float32"

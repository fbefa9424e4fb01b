"""Statistics of a graph's tensors over calibration batches.
Which tensors are observed is graph/place.py's decision; quantizers are fitted to them in fit.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.clipping import ANY_VALUES
from pytorch_quantizer.quantization.statistics import Limits, TensorStatistics
from pytorch_quantizer.ranks import ALONE, Ranks

Statistics = dict[str, TensorStatistics]
Observer = Callable[[Tensor], None]


def images_of(batches: Iterable[Any], device: torch.device) -> Iterator[Tensor]:
    """The images of batches that are a Tensor or a tuple or list that begins with one, on ``device``.

    Raises InputError for batches of another form or without floating-point images.
    """
    for batch in batches:
        images = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(images, Tensor) or not images.is_floating_point():
            raise InputError(
                "a calibration batch must be a float tensor of images, or a tuple or list that begins with one; "
                f"got {type(images).__name__}"
            )
        yield images.to(device)


def count_images(batches: Any) -> int | None:
    """How many images there are in batches of images_of's forms, at most; None where they have to be taken for that."""
    if isinstance(batches, Tensor):
        return len(batches)
    if isinstance(batches, tuple | list):
        found = [batch[0] if isinstance(batch, tuple | list) and batch else batch for batch in batches]
        return sum(x.shape[:1].numel() for x in found) if all(isinstance(x, Tensor) for x in found) else None
    if isinstance(batches, DataLoader) and batches.batch_size is not None and isinstance(batches.sampler, Sized):
        return len(batches.sampler)
    return None


def statistics_key(site: Site) -> str:
    """The name that what a site's quantizer is fitted to goes by: the observed node's; ``add:relu6:1``.

    Behind it, where a ReLU's input is observed, that ReLU, and the axis where there is one.
    """
    axis, domain = getattr(site.quantizer, "axis", None), getattr(site.quantizer, "domain", ANY_VALUES)
    relu = [f"relu{'' if domain.upper is None else f'{domain.upper:g}'}"] if domain.support == "rectified" else []
    return ":".join([site.observed, *relu, *([] if axis is None else [str(axis)])])


def calibrate(
    graph: fx.GraphModule,
    sites: tuple[Site, ...],
    batches: Iterable[Any],
    *,
    also: Mapping[str, Iterable[Observer]] | None = None,
    ranks: Ranks = ALONE,
    progress: bool = True,
) -> Statistics:
    """Run ``batches`` through the float graph and return the statistics of what the sites observe, by statistics_key.

    One record a batch, merged in batch order. also: by node name, what else is to see its values, batch by batch.
    ranks: of several processes that are all given all batches; each runs its share, and all get the statistics of them
    all; but where ``also`` is to see them, all run all. Raises InputError where there is no batch.
    """
    recorders = {key: _Recorder(wanted) for key, wanted in wanted_statistics(sites).items()}
    observers: dict[str, list[Observer]] = {name: list(given) for name, given in (also or {}).items()}
    for recorder in recorders.values():
        observers.setdefault(recorder.wanted.node, []).append(recorder)
    share, runner = ALONE if also else ranks, _Runner(graph, observers)
    images = images_of(batches, device_of(graph))
    shown = tqdm(images, "calibrating", delay=1, disable=not progress, unit="batch", leave=False)
    rounds = 0
    with torch.no_grad():
        for rounds, some in enumerate(share.rounds(shown), 1):  # noqa: B007
            if share.rank < len(some):
                runner.run(some[share.rank])
            _merge_round(recorders, share)
    if not rounds:
        raise InputError("the calibration set is empty; give at least one batch of images")
    return {key: recorder.merged for key, recorder in recorders.items() if recorder.merged is not None}


def _merge_round(recorders: Mapping[str, _Recorder], ranks: Ranks) -> None:
    """Merge what the ranks saw in a round, in their order; a rank that had no batch left saw nothing."""
    seen = {key: recorder.take(ranks) for key, recorder in recorders.items()}
    for records in ranks.everyones(seen):
        for key, record in records.items():
            if record is not None:
                recorders[key].merge(record)


class Wanted(NamedTuple):
    """What a site's quantizer is fitted to: a node's values, per channel along ``axis`` or not; see from_tensor."""

    node: str
    axis: int | None
    histogram: bool
    limits: Limits


def wanted_statistics(sites: Iterable[Site]) -> dict[str, Wanted]:
    """By statistics_key, what the sites' quantizers need to see; a histogram where any of them needs one."""
    wanted: dict[str, Wanted] = {}
    for site in sites:
        if site.quantizer is None or not site.is_activation or not site.quantizer.needs_statistics:
            continue
        key, axis = statistics_key(site), getattr(site.quantizer, "axis", None)
        histogram = site.quantizer.needs_histogram or (key in wanted and wanted[key].histogram)
        limits = getattr(site.quantizer, "domain", ANY_VALUES).limits
        wanted[key] = Wanted(site.observed, axis, histogram, limits)
    return wanted


class _Recorder:
    """The statistics of a batch's values, and of all batches whose records were merged."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.merged: TensorStatistics | None = None
        self._record: TensorStatistics | None = None

    def __call__(self, value: Tensor) -> None:
        _, axis, histogram, limits = self.wanted
        record = TensorStatistics.from_tensor(value, axis=axis, histogram=histogram, limits=limits).with_extremes()
        self._record = record if self._record is None else self._record.merge(record)

    def take(self, ranks: Ranks) -> TensorStatistics | None:
        """The batch's record, once; for other ranks it comes to the CPU."""
        record, self._record = self._record, None
        return record if record is None or ranks.count == 1 else record.to("cpu")

    def merge(self, record: TensorStatistics) -> None:
        """Add the next batch's record."""
        self.merged = record if self.merged is None else self.merged.merge(record)


class _Runner(fx.Interpreter):
    """Runs a graph and shows the values of observed nodes."""

    def __init__(self, graph: fx.GraphModule, observers: Mapping[str, Iterable[Observer]]) -> None:
        super().__init__(graph)
        self.observers = observers

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for observer in self.observers.get(n.name, ()):
            observer(value)
        return value


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters and buffers lie; the CPU where it has none."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))

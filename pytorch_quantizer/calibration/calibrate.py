"""Statistics of a graph's tensors over calibration batches, and quantizers fitted to them.
Which tensors are observed is graph/place.py's decision; ranges are chosen in quantization/clipping.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.statistics import TensorStatistics

Statistics = dict[str, TensorStatistics]


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


def calibrate(
    graph: fx.GraphModule, sites: tuple[Site, ...], batches: Iterable[Any], *, progress: bool = True
) -> Statistics:
    """Run ``batches`` through the float graph and return the statistics of what the sites observe, by node name.

    One record a batch, merged in batch order. Raises InputError where there is no batch.
    """
    observed = {site.observed for site in sites if site.is_activation and site.quantizer is not None}
    observer = _Observer(graph, observed)
    with torch.no_grad():
        for images in tqdm(
            images_of(batches, device_of(graph)), "calibrating", delay=1, disable=not progress, unit="batch"
        ):
            observer.run(images)
    if not observer.batches:
        raise InputError("the calibration set is empty; give at least one batch of images")
    return {name: TensorStatistics.merged(records) for name, records in observer.records.items()}


def fit(graph: fx.GraphModule, sites: tuple[Site, ...], statistics: Statistics) -> tuple[Site, ...]:
    """Fit each site's quantizer, weights to their values, activations to their statistics; the same sites come back.

    Raises InputError that names the tensor whose values don't allow a range.
    """
    for site in sites:
        if site.quantizer is None:
            continue
        try:
            source = statistics[site.observed] if site.is_activation else graph.get_parameter(site.node).detach()
            site.quantizer.fit(source)
        except InputError as error:
            raise InputError(f"{site.name}: {error}") from error
    return sites


class _Observer(fx.Interpreter):
    """Runs a graph and keeps a record of each observed node a batch."""

    def __init__(self, graph: fx.GraphModule, observed: set[str]) -> None:
        super().__init__(graph)
        self.records: dict[str, list[TensorStatistics]] = {name: [] for name in observed}
        self.batches = 0

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.batches += 1
        return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self.records:
            self.records[n.name].append(TensorStatistics.from_tensor(value))
        return value


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters and buffers lie; the CPU where it has none."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))

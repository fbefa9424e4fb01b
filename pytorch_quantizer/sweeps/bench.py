"""Measuring a point as run_inference does, with images and weights loaded once for all points that share them.
Where a bench runs, here or in another process, and what becomes of the row is not its business.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pytorch_quantizer.data import ImageDataset, calibration_loader, make_loader
from pytorch_quantizer.environment import choose_device, machine, versions
from pytorch_quantizer.evaluation import Evaluation, evaluate, file_bytes
from pytorch_quantizer.experiments.cells import code_digest
from pytorch_quantizer.experiments.inference_config import ResolvedConfig, load_images, load_model
from pytorch_quantizer.quantize import quantize
from pytorch_quantizer.sweeps.point import Point


@dataclass(frozen=True)
class Measured:
    """A point's row without its key; seconds that went into loading, and the float network's run, before it.

    trace: the traceback of what failed, empty otherwise. origin: versions and machine, empty where nothing ran.
    """

    row: dict[str, Any]
    loading_seconds: float
    trace: str = ""
    origin: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Network:
    """A float network on its device, its images and what it makes of them."""

    config: ResolvedConfig
    device: torch.device
    test: ImageDataset
    calibration: ImageDataset
    split: str
    model: nn.Module
    evaluation: Evaluation
    size: int
    origin: dict[str, Any]


class Bench:
    """Measures points; keeps one network, that of the last point."""

    def __init__(self) -> None:
        self._network: _Network | None = None

    def measure(self, point: Point) -> Measured:
        """The point's row, with figures or with the error; no Exception leaves it."""
        row = point.columns() | {"threads": torch.get_num_threads(), "code": code_digest(any_machine=True)}
        start = time.perf_counter()
        loading = 0.0
        try:
            network = self._load(point)
            loading = time.perf_counter() - start
            return Measured(row | _figures(network, point) | {"error": ""}, loading, origin=network.origin)
        except Exception as error:  # whatever it is: the other points go on, and the row says it
            return Measured(row | {"error": told(error)}, loading, traceback.format_exc())

    def _load(self, point: Point) -> _Network:
        wanted = point.network
        if self._network is None or self._network.config != wanted:
            self._network = None  # its memory is wanted for the next one
            self._network = _load(wanted)
        return self._network


def told(error: BaseException) -> str:
    """An error in one line, its type first."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _load(config: ResolvedConfig) -> _Network:
    device = choose_device(config.device)
    test, calibration, split = load_images(config)
    model = load_model(config, test).to(device)
    evaluated = make_loader(test, config.batch_size, limit=config.limit)
    evaluation = evaluate(model, evaluated, device=device, progress=False)
    origin = {"versions": versions(), "machine": machine(device)}
    return _Network(config, device, test, calibration, split, model, evaluation, file_bytes(model), origin)


def _figures(network: _Network, point: Point) -> dict[str, Any]:
    config, reference = point.config, network.evaluation
    drawn = calibration_loader(
        network.calibration, config.calibration_samples, batch_size=config.batch_size, seed=config.seed
    )
    start = time.perf_counter()
    quantized = quantize(network.model, point.recipe, drawn, strict=config.strict, progress=False)
    quantizing = time.perf_counter() - start
    evaluated = make_loader(network.test, config.batch_size, limit=config.limit)
    evaluation = evaluate(quantized, evaluated, device=network.device, progress=False)
    size = file_bytes(quantized)
    agreement = float((evaluation.predictions == reference.predictions).double().mean())
    return {
        **_rates("", evaluation),
        **_rates("fp32_", reference),
        "samples": evaluation.samples,
        "top1_low": evaluation.top1_interval[0],
        "top1_high": evaluation.top1_interval[1],
        "agreement": agreement,
        "size_bytes": size,
        "fp32_size_bytes": network.size,
        "seconds": round(time.perf_counter() - start, 3),
        "quantizing_seconds": round(quantizing, 3),
        "calibration_split": network.split,
        "skipped_images": len({*network.test.skipped, *network.calibration.skipped}),
    }


def _rates(prefix: str, evaluation: Evaluation) -> dict[str, float]:
    rates = {"top1": evaluation.top1, "top5": evaluation.top5}
    rates |= {name: getattr(evaluation, name)["macro"] for name in ("precision", "recall", "f1")}
    return {f"{prefix}{name}": value for name, value in rates.items()}

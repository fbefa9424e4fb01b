"""A run's float network and the quantized one, made or loaded, with some images, and no evaluation.
Evaluated they are by inference.py and comparison.py, timed by speed.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pytorch_quantizer.data import calibration_loader, make_loader
from pytorch_quantizer.environment import choose_device
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, load_model, resolved
from pytorch_quantizer.experiments.quantize_job import quantize_job
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.export.checkpoint import load
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe

DEFAULT_RESOURCES = Resources()


@dataclass(frozen=True)
class Networks:
    """model: in float. quantized: the same, simulated. images: a batch of what it reads, [N, C, H, W]."""

    model: nn.Module
    quantized: QuantizedModel
    images: Tensor


def quantize_network(config: InferenceConfig, recipe: Recipe, resources: Resources = DEFAULT_RESOURCES) -> Networks:
    """Quantize as run_inference does. Raises InputError for what in ``config`` or ``recipe`` can't be carried out."""
    config = resolved(config)
    device = choose_device(config.device)
    test, calibration, _ = load_images(config)
    model = load_model(config, test).to(device)
    batches = calibration_loader(
        calibration, config.calibration_samples, batch_size=config.batch_size, seed=config.seed
    )
    quantized = quantize_job(model, recipe, batches, config, resources)
    return Networks(model, quantized, next(iter(batches))[0].to(device))


def saved_network(config: InferenceConfig, path: Path) -> Networks:
    """The quantized network of a packed checkpoint, and the float one of ``config``, from which it was made.

    Raises InputError as ``pq.load`` does, so also for another float network.
    """
    config = resolved(config)
    device = choose_device(config.device)
    test, *_ = load_images(config)
    model = load_model(config, test).to(device)
    return Networks(model, load(path, model=model, device=device), some_images(config).to(device))


def some_images(config: InferenceConfig) -> Tensor:
    """Test images as the network sees them, [N, C, H, W], N at most a batch."""
    config = resolved(config)
    test, *_ = load_images(config)
    images: Tensor = next(iter(make_loader(test, config.batch_size, limit=min(config.batch_size, len(test)))))[0]
    return images

"""How long a forward pass takes, with the label that says what was timed.
Kernels are timed in benchmarks/, sizes are in size.py.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pytorch_quantizer.errors import InputError


@dataclass(frozen=True)
class Latency:
    """Median time of one forward pass over a batch, in milliseconds.

    `label` is 'simulated' (floating point on the quantization grid: says nothing of integer hardware) or 'float32'.
    """

    median_ms: float
    batch_size: int
    threads: int
    label: str
    device: str
    repeats: int

    def __str__(self) -> str:
        where = f"{self.device}, {self.threads} threads" if self.device == "cpu" else self.device
        return f"{self.median_ms:.2f} ms for {self.batch_size} images ({self.label}, {where})"


@torch.inference_mode()
def measure_latency(
    model: nn.Module, images: Tensor, *, repeats: int = 10, warmup: int = 3, label: str | None = None
) -> Latency:
    """Time `repeats` forward passes over `images` [N, C, H, W] after `warmup` untimed ones and take the median.

    Everything runs where `images` is; CUDA is synchronised before each clock reading. `label` None: 'simulated' for a
    quantized model (it has sites), else 'float32'. Raises InputError for no images or fewer than one repeat.
    """
    if repeats < 1 or warmup < 0 or not len(images):
        raise InputError(
            f"latency needs images and a repeat, got {len(images)} images, {repeats} repeats, {warmup} warm-up"
        )
    for _ in range(warmup):
        model(images)
    times = [_seconds(model, images) for _ in range(repeats)]
    return Latency(
        median_ms=statistics.median(times) * 1e3,
        batch_size=len(images),
        threads=torch.get_num_threads(),
        label=label or ("simulated" if hasattr(model, "sites") else "float32"),
        device=images.device.type,
        repeats=repeats,
    )


def _seconds(model: nn.Module, images: Tensor) -> float:
    _synchronise(images)
    start = time.perf_counter()
    model(images)
    _synchronise(images)
    return time.perf_counter() - start


def _synchronise(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)

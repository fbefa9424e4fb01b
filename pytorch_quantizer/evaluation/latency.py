"""How long a forward pass takes, with the label that says what was timed.
Kernels are timed in benchmarks/, sizes are in size.py.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pytorch_quantizer.errors import InputError

LEAST_REPEATS = 3
LONGEST_S = 5.0  # of timed passes: a slow network is measured fewer times
LONGEST_WARMUP_S = 1.0


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
    model: nn.Module,
    images: Tensor,
    *,
    repeats: int = 10,
    warmup: int = 3,
    label: str | None = None,
    progress: bool = True,
) -> Latency:
    """Time `repeats` forward passes over `images` [N, C, H, W] after `warmup` untimed ones and take the median.

    Slow passes are fewer: no more than LEAST_REPEATS once LONGEST_S seconds were timed, and none to warm up after
    LONGEST_WARMUP_S. Everything runs where `images` is; CUDA is synchronised before each clock reading. `label` None:
    'simulated' for a quantized model (it has sites), else 'float32'. Raises InputError for no images or fewer than one
    repeat.
    """
    if repeats < 1 or warmup < 0 or not len(images):
        raise InputError(
            f"latency needs images and a repeat, got {len(images)} images, {repeats} repeats, {warmup} warm-up"
        )
    with tqdm(desc="latency", unit="pass", total=warmup + repeats, delay=1, disable=not progress, leave=False) as bar:
        _passes(model, images, warmup, 1, LONGEST_WARMUP_S, bar)
        times = _passes(model, images, repeats, LEAST_REPEATS, LONGEST_S, bar)
    return Latency(
        median_ms=statistics.median(times) * 1e3,
        batch_size=len(images),
        threads=torch.get_num_threads(),
        label=label or ("simulated" if hasattr(model, "sites") else "float32"),
        device=images.device.type,
        repeats=len(times),
    )


def _passes(model: nn.Module, images: Tensor, most: int, least: int, longest: float, bar: "tqdm[Any]") -> list[float]:
    """Seconds of each of `most` passes; of fewer, but `least`, once they add up to `longest` seconds."""
    times: list[float] = []
    while len(times) < most and (len(times) < least or sum(times) < longest):
        times.append(_seconds(model, images))
        bar.update()  # between the timings, not in them
    return times


def _seconds(model: nn.Module, images: Tensor) -> float:
    _synchronise(images)
    start = time.perf_counter()
    model(images)
    _synchronise(images)
    return time.perf_counter() - start


def _synchronise(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)

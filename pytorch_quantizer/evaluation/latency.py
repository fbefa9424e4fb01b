"""How long a forward pass takes, and what was timed: simulated or integer, by which runtime, on how many threads.
Kernels are timed in benchmarks/, sizes are in size.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pytorch_quantizer.errors import InputError

PARTLY = "partly integer"
EXECUTIONS = ("float16", "bfloat16", "float32", "float64", "simulated", "dequantized-weights", PARTLY, "integer")
Rule = tuple[tuple[int, float], ...]  # each line: so many passes are enough once they took so many seconds
ENOUGH: Rule = ((3, 5.0), (10, 1.0), (100, 0.0))
WARM: Rule = ((1, 1.0), (3, 0.0))


@dataclass(frozen=True)
class Latency:
    """Times of a forward pass over one batch, in milliseconds: median, 10th and 90th percentile, minimum of `repeats`.

    label: one of EXECUTIONS. 'simulated' is floating point on the quantization grid and says nothing of integer
    hardware; 'dequantized-weights' computes in float with weights that are stored as codes; 'integer' runs integer
    kernels, 'partly integer' not for all layers and additions. threads: of the CPU, as many as the runtime was given.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    minimum_ms: float
    batch_size: int
    threads: int
    label: str
    runtime: str
    device: str
    repeats: int

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        where = f"{self.device}, {threads}" if self.device == "cpu" else self.device
        images = f"{self.batch_size} image{'s' if self.batch_size > 1 else ''}"
        spread = f"10 to 90 %: {self.p10_ms:.2f} to {self.p90_ms:.2f}"
        return f"{self.median_ms:.2f} ms for {images} ({spread}; {self.label}, {self.runtime}, {where})"

    def as_dict(self) -> dict[str, Any]:
        """Give the fields, for JSON."""
        return asdict(self)


def measure_latency(
    model: nn.Module,
    images: Tensor,
    *,
    threads: int | None = None,
    repeats: int | None = None,
    warmup: int | None = None,
    label: str | None = None,
    runtime: str | None = None,
    progress: bool = True,
) -> Latency:
    """Time forward passes of one model over `images` [N, C, H, W]; see compare_latency, which times several in turn.

    label, runtime: what to say instead of what the model says of itself. Raises InputError also for a label that isn't
    one of EXECUTIONS.
    """
    options = {"threads": threads, "repeats": repeats, "warmup": warmup}
    if label is not None:
        _check_label(label, "latency")
    measured = compare_latency({"model": model}, images, **options, progress=progress)["model"]
    return replace(measured, label=label or measured.label, runtime=runtime or measured.runtime)


@torch.inference_mode()
def compare_latency(
    models: Mapping[str, nn.Module],
    images: Tensor,
    *,
    threads: int | None = None,
    repeats: int | None = None,
    warmup: int | None = None,
    progress: bool = True,
) -> dict[str, Latency]:
    """Time forward passes of each model over `images` [N, C, H, W], in eval mode, by name.

    The models take turns, one pass each a round, in an order drawn anew each round: what else the machine does, and
    what a model leaves in the caches, falls on all alike, so that their ratios mean something. `warmup` rounds go
    untimed before `repeats` timed ones; None: as many as WARM and ENOUGH say, by the time that a model takes on
    average: a hundred quick passes, three slow ones. Everything runs where `images` is; CUDA is synchronised before
    each clock reading.

    threads: how many torch computes with meanwhile; None: as many as now. A model may say of itself, as attributes:
    `execution`, one of EXECUTIONS (else: 'simulated' where it has sites, as a QuantizedModel does, else the type of its
    parameters); `runtime`, its name and version (else PyTorch's); `threads`, how many its runtime computes with on the
    CPU, where that isn't torch.
    Raises InputError for no images, fewer than one repeat or thread, an `execution` that isn't one of EXECUTIONS,
    models that don't all run on as many threads, or not on as many as asked for, and one of the CPU with images
    elsewhere.
    """
    if not models or not len(images):
        raise InputError(f"latency needs a model and images, got {len(models)} models, {len(images)} images")
    check_counts(threads=threads, repeats=repeats, warmup=warmup)
    timed = list(models.values())
    with _torch_threads(threads), _evaluating(timed), _bar(repeats, warmup, progress) as bar:
        said = {name: _description(name, model, images) for name, model in models.items()}
        _check_threads({name: entry["threads"] for name, entry in said.items()}, threads)
        _rounds(timed, images, WARM if warmup is None else ((warmup, 0.0),), bar)
        rounds = _rounds(timed, images, ENOUGH if repeats is None else ((repeats, 0.0),), bar)
    of_models = zip(said.items(), zip(*rounds, strict=True), strict=True)
    return {name: _latency(times, images, entry) for (name, entry), times in of_models}


def latency_by_batch(
    models: Mapping[str, nn.Module], images: Tensor, batch_sizes: Sequence[int] = (1, 32), **options: Any
) -> dict[str, list[Latency]]:
    """compare_latency over the first of `images`, for each of `batch_sizes`: by name, a Latency a size, in their order.

    options: compare_latency's. Raises InputError also for a size below 1 or above the number of images.
    """
    for size in batch_sizes:
        if not 1 <= size <= len(images):
            raise InputError(f"a batch of {size} can't be taken from {len(images)} images: give more, or another size")
    measured = [compare_latency(models, images[:size], **options) for size in batch_sizes]
    return {name: [of_size[name] for of_size in measured] for name in models}


def check_counts(*, threads: int | None = None, repeats: int | None = None, warmup: int | None = None) -> None:
    """Raise InputError for fewer than one thread or timed pass, or fewer than none before them."""
    for name, least, count in (("threads", 1, threads), ("repeats", 1, repeats), ("warmup", 0, warmup)):
        if count is not None and count < least:
            raise InputError(f"{name} must be {least} or more, got {count}")


def _check_label(label: str, whose: str) -> None:
    if label not in EXECUTIONS:
        raise InputError(f"the label of {whose} must be one of {', '.join(EXECUTIONS)}, got {label!r}")


def _check_threads(found: Mapping[str, Any], asked: int | None) -> None:
    """Times on different numbers of threads can't be compared, and no number is reported that wasn't the model's."""
    for name, threads in found.items():
        if not isinstance(threads, int):
            raise InputError(f"{name} doesn't say how many threads its runtime computes with: make it with threads=N")
    wanted = asked or next(iter(found.values()))
    if any(threads != wanted for threads in found.values()):
        counts = ", ".join(f"{name} on {threads}" for name, threads in found.items())
        raise InputError(f"latency is to be measured on {wanted} threads, but {counts}: make each for as many")


def _description(name: str, model: nn.Module, images: Tensor) -> dict[str, Any]:
    """The label, runtime and threads of a model: what it says of itself, else torch's."""
    if hasattr(model, "threads") and images.device.type != "cpu":
        raise InputError(f"{name} runs on the CPU, the images are on {images.device}: give images.cpu()")
    label = getattr(model, "execution", None) or ("simulated" if hasattr(model, "sites") else _float_type(model))
    _check_label(label, name)
    own = f"PyTorch {torch.__version__.partition('+')[0]}"
    return {
        "label": label,
        "runtime": getattr(model, "runtime", own),
        "threads": getattr(model, "threads", torch.get_num_threads()),
    }


def _float_type(model: nn.Module) -> str:
    types = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return str(next(types, torch.float32)).removeprefix("torch.")


def _bar(repeats: int | None, warmup: int | None, progress: bool) -> tqdm[Any]:
    total = None if repeats is None or warmup is None else repeats + warmup
    return tqdm(desc="latency", unit="round", total=total, delay=1, disable=not progress, leave=False)


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    """Eval mode, and afterwards the mode that each model came in."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def _rounds(models: Sequence[nn.Module], images: Tensor, rule: Rule, bar: tqdm[Any]) -> list[list[float]]:
    """Seconds of each model's pass, round after round, until the rule says that they are enough."""
    rounds: list[list[float]] = []
    spent, drawn = 0.0, random.Random(0)  # seconds a model, on average
    while not any(len(rounds) >= least and spent >= seconds for least, seconds in rule):
        order = drawn.sample(range(len(models)), len(models))
        taken = {index: _seconds(models[index], images) for index in order}
        rounds.append([taken[index] for index in range(len(models))])
        spent += sum(rounds[-1]) / len(models)
        bar.update()  # between the timings, not in them
    return rounds


def _seconds(model: nn.Module, images: Tensor) -> float:
    _synchronise(images)
    start = time.perf_counter()
    model(images)
    _synchronise(images)
    return time.perf_counter() - start


def _synchronise(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def _latency(seconds: Sequence[float], images: Tensor, said: Mapping[str, Any]) -> Latency:
    p10, median, p90 = (float(value) for value in np.percentile(seconds, (10, 50, 90)) * 1e3)
    return Latency(
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        minimum_ms=min(seconds) * 1e3,
        batch_size=len(images),
        device=images.device.type,
        repeats=len(seconds),
        **said,
    )

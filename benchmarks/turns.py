"""Timing: implementations of the same thing take turns, so that all see the same machine, and medians count."""

import math
import statistics
import time
from collections.abc import Callable

import torch

SHORTEST_S = 5e-3  # of one timing: what is quicker is repeated within it
MOST_REPETITIONS = 2000

Run = Callable[[], object]


def medians(runs: dict[str, Run], device: str, repeats: int) -> dict[str, float]:
    """Median seconds a call of each, over `repeats` rounds in which each is timed once in turn; warm-up before."""
    repetitions = {name: repetitions_of(run, device) for name, run in runs.items()}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(seconds(run, device, repetitions[name]))
    return {name: statistics.median(values) for name, values in taken.items()}


def repetitions_of(run: Run, device: str) -> int:
    """How often a call is repeated to take SHORTEST_S; two calls warm it up."""
    seconds(run, device)
    return min(MOST_REPETITIONS, math.ceil(SHORTEST_S / seconds(run, device)))


def seconds(run: Run, device: str, repetitions: int = 1) -> float:
    """Seconds a call: by the clock on the CPU, by events of the device on CUDA."""
    timed = _cuda_seconds if device == "cuda" else _cpu_seconds
    return timed(run, repetitions) / repetitions


def _cpu_seconds(run: Run, repetitions: int) -> float:
    start = time.perf_counter()
    for _ in range(repetitions):
        run()
    return time.perf_counter() - start


def _cuda_seconds(run: Run, repetitions: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repetitions):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3

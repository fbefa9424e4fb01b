"""Kernels that repeat to the bit, for as long as something learns. Seeds are the business of what draws."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

MEMORY: Any = torch.utils.deterministic  # its one setting is unknown to mypy
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may add up in another order each time


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Ask torch and cuDNN for kernels that repeat to the bit, as far as there are such.

    torch then also fills all memory that it hands out, unless told not to: nothing here reads what it didn't write.
    Where there is a GPU, cuBLAS is given a workspace of fixed size, unless the environment names one, and it stays.
    torch warns of what has no such kernel.
    """
    if torch.cuda.is_available():
        os.environ.setdefault(*CUBLAS)
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = MEMORY.fill_uninitialized_memory
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    MEMORY.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
        MEMORY.fill_uninitialized_memory = filled
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn

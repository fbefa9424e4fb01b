"""Which implementation runs: finds the built kernels and registers the plain-PyTorch ones wherever there are none.
This is the only place that decides; ops/ calls `torch.ops.pytorch_quantizer` whatever is there.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from pytorch_quantizer.fallback import FALLBACKS, SCHEMAS


@dataclass(frozen=True)
class Backend:
    """What runs the ops: `cpu` is avx512, avx2, baseline or reference; `cuda` is a device count or what is missing."""

    cpu: str
    cuda: str

    def __str__(self) -> str:
        return f"cpu: {self.cpu}; cuda: {self.cuda}"


def backend() -> Backend:
    """Say what is built and what will run; never raises for something that is absent."""
    load()
    cpu = torch.ops.pytorch_quantizer.cpu_capability() if module_path("_C") else "reference"
    devices = torch.cuda.device_count()
    built = "built" if module_path("_CUDA") else "not built"
    return Backend(cpu, f"{built}, {devices or 'no'} device{'s' * (devices > 1)}")


def module_path(name: str) -> Path | None:
    """Find the built module `_C` or `_CUDA`, or None."""
    return next(iter(sorted(Path(__file__).parent.glob(f"{name}.*so"))), None)


@functools.cache
def load() -> torch.library.Library:
    """Load what is built and register the rest; called once, below. The Library must outlive its registrations."""
    kernels, cuda = module_path("_C"), module_path("_CUDA")
    if kernels:
        torch.ops.load_library(str(kernels))
    if kernels and cuda and torch.version.cuda:
        torch.ops.load_library(str(cuda))
    library = torch.library.Library("pytorch_quantizer", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not kernels:
            library.define(name + schema)
        # The lowest priority there is: a kernel registered for a device always goes before it.
        library.impl(name, FALLBACKS[name], "CompositeExplicitAutograd")
    return library


load()
raw = torch.ops.pytorch_quantizer  # what ops/ calls, whatever is behind it

"""Which implementation runs: finds the built kernels and registers the plain-PyTorch ones wherever there are none.
This is the only place that decides; ops/ calls `torch.ops.pytorch_quantizer` whatever is there.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch

from pytorch_quantizer.fallback import FALLBACKS, SCHEMAS
from pytorch_quantizer.user_warnings import warn_user


@dataclass(frozen=True)
class Backend:
    """What runs the ops: `cpu` is avx512, avx2, baseline or reference; `cuda` is a device count or what is missing."""

    cpu: str
    cuda: str

    def __str__(self) -> str:
        return f"cpu: {self.cpu}; cuda: {self.cuda}"


def backend() -> Backend:
    """Say what is built and what will run; never raises for something that is absent."""
    loaded = load()[1]
    cpu = torch.ops.pytorch_quantizer.cpu_capability() if "_C" in loaded else "reference"
    devices = torch.cuda.device_count()
    found = "built, but it doesn't load" if torch.version.cuda else "built, for which this torch has no CUDA"
    built = "built" if "_CUDA" in loaded else found if module_path("_CUDA") else "not built"
    return Backend(cpu, f"{built}, {devices or 'no'} device{'s' * (devices > 1)}")


def module_path(name: str) -> Path | None:
    """Find the built module `_C` or `_CUDA`, or None."""
    return next(iter(sorted(Path(__file__).parent.glob(f"{name}.*so"))), None)


@functools.cache
def load() -> tuple[torch.library.Library, frozenset[str]]:
    """Load what is built and register the rest; called once, below. The Library must outlive what it registers."""
    loaded = {"_C"} if _loads("_C") else set()
    if loaded and torch.version.cuda and _loads("_CUDA"):
        loaded.add("_CUDA")
    library = torch.library.Library("pytorch_quantizer", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not loaded:
            library.define(name + schema)
        # The lowest priority there is: a kernel registered for a device always goes before it.
        library.impl(name, FALLBACKS[name], "CompositeExplicitAutograd")
    return library, frozenset(loaded)


def _loads(name: str) -> bool:
    """Load a built module; a warning where it is there and doesn't load: it was built beside another torch or CUDA."""
    path = module_path(name)
    if path is None:
        return False
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        cause = " ".join(str(error.__cause__ or error).split())
        warn_user(f"{path.name} doesn't load ({cause}); build it again by kernels/build_all.sh")
        return False
    return True


load()
raw = torch.ops.pytorch_quantizer  # what ops/ calls, whatever is behind it

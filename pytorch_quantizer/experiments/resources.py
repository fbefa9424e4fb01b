"""What a run's learning may take, and where it keeps what it has finished: flags that change no result.
What is learned is the recipe's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from pytorch_quantizer.calibration.reconstruction_run import check_limits
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.recipe import Recipe

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Resources:
    """Each field's ``metadata["help"]`` is its flag's help; None leaves it to quantize()."""

    max_memory: str | None = field(
        default=None,
        metadata={
            "help": "where the recipe asks for reconstruction or tuning: memory that these and all before them may "
            "take, 512MiB or 2GB; the rest lies in files"
        },
    )
    resume: str | Path | None = field(
        default=None,
        metadata={"help": "folder for the blocks that reconstruction finishes; one that was stopped goes on there"},
    )

    def __post_init__(self) -> None:
        """Raise InputError for a folder without a name, which Path takes for the current one."""
        if self.resume == "":
            raise InputError("resume must be a folder, got '': name one, or leave it out")

    @property
    def memory_bytes(self) -> int | None:
        """``max_memory`` in bytes. Raises InputError where it is no size."""
        return None if self.max_memory is None else parse_bytes("max_memory", self.max_memory)

    def check(self, recipe: Recipe) -> None:
        """Raise InputError now where quantize() would after the data are read: no size, or nothing that is learned."""
        check_limits(recipe, self.memory_bytes, self.resume)


def parse_bytes(name: str, text: str) -> int:
    """The bytes that a text gives: a number, and B, kB, MB, GB, KiB, MiB or GiB. Raises InputError, with ``name``."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise InputError(f"{name} must be a number of bytes, as 512MiB or 2GB, got {text!r}")
    return int(float(found[1]) * unit)

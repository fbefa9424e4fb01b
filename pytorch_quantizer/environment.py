"""What a result was computed on: versions, machine, device. Nothing is measured here."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pytorch_quantizer.backend import backend
from pytorch_quantizer.errors import InputError

REPORTED = ("torch", "torchvision", "numpy", "scipy", "scikit-learn")


def choose_device(name: str | None) -> torch.device:
    """The device asked for, or with None the GPU if one works, else the CPU.

    Raises InputError for a device that isn't there or a name that is none.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() and _works("cuda") else "cpu")
    device = named_device(name)
    if not _works(name):
        raise InputError(f"device {name!r} isn't there or doesn't work; torch sees {_seen()}; use --device cpu")
    return device


def named_device(name: str) -> torch.device:
    """The device of that name, whether it is there or not. Raises InputError for a name that is none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device must be cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu, cuda or cuda:N, got {name!r}")
    return device


def versions(*optional: str) -> dict[str, str]:
    """Python's, this package's and those of the libraries that take part in the numbers; and the kernels' state.

    optional: packages that take part too, where they are installed.
    """
    packages = {name: metadata.version(name) for name in (*REPORTED, *filter(_is_installed, optional))}
    return {"python": platform.python_version(), **packages, "cuda": str(torch.version.cuda), "kernels": str(backend())}


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, cores, threads that torch uses, system, device, and the GPU where one is used."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": str(device),
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def machine_line(device: torch.device | str = "cpu") -> str:
    """``machine`` as a line for people: its numbers say what they count."""
    found = machine(device)
    for name in ("cores", "threads"):
        if found[name] is not None:
            found[name] = f"{found[name]} {name if found[name] != 1 else name.removesuffix('s')}"
    return ", ".join(str(value) for value in found.values() if value is not None)


def free_memory(device: torch.device | str = "cpu") -> int:
    """Bytes that can still be had on a device; where the system doesn't say, half of all its memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def provenance(device: torch.device | str = "cpu", *optional: str) -> dict[str, Any]:
    """What stands beside measured numbers in a file: versions, machine and date (UTC). optional: as ``versions``."""
    return {"versions": versions(*optional), "machine": machine(device), "date": datetime.now(UTC).date().isoformat()}


def _is_installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def _works(name: str) -> bool:
    try:
        return bool(torch.ones(1, device=name).add(1).item() == 2)
    except (RuntimeError, AssertionError):  # torch without CUDA raises AssertionError
        return False


def _seen() -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"{count} CUDA device(s)" if count else "no CUDA device"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )

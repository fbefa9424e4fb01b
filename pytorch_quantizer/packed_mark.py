"""By what a packed checkpoint of a quantized model is known among safetensors files, before it is read.
Writing and reading it is export/checkpoint.py's.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

KEY = "pytorch_quantizer"  # of the file's metadata: {"version", "checksum"}


def is_packed(path: Path) -> bool:
    """Whether a file is one, whatever its name; not so of one that isn't there or can't be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False

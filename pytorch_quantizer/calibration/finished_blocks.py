"""A folder that holds the blocks which a run has finished, so that a run that was killed goes on behind them.
What a block's state is, is reconstruct.py's business.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.calibration.activation_cache import Rows
from pytorch_quantizer.calibration.calibrate import device_of
from pytorch_quantizer.digests import digest_tensor, tensors_digest
from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.graph.quantized_model import QuantizedModel

HEADER = "run.json"
DIGEST = ":digest"  # no tensor of a model has such a name
AT_ONCE = 64  # images that are digested together
AFTERWARDS = ("name", "tuning_")  # fields of a recipe that blocks don't depend on


class FinishedBlocks:
    """Files in a folder, each written whole or not at all: ``run.json`` says of which run, ``block-0003.safetensors``
    holds a block, with a digest of run, number and content.

    identity: what makes a run the same (``identity_of``), text by name. Raises InputError where the folder holds
    another run, naming what differs, and where it can't be read or written.
    """

    def __init__(self, folder: Path | str, identity: dict[str, str]) -> None:
        self.folder, self._identity = Path(folder), json.dumps(identity, sort_keys=True)
        header = self.folder / HEADER
        known = _read_header(header) if header.exists() else None
        if known is None:
            write_atomically(header, json.dumps(identity, indent=1).encode())
            return
        for name, value in identity.items():
            if known.get(name) != value:
                raise InputError(
                    f"{self.folder} holds another run, whose {name} is {_shown(known.get(name))}, this one's "
                    f"{_shown(value)}: give another folder, or remove that one"
                )

    def read(self, index: int) -> dict[str, Tensor] | None:
        """What was written of a block, None where it isn't finished.

        Raises InputError for a file that is damaged, or of another block or run.
        """
        path = self._path(index)
        if not path.exists():
            return None
        try:
            state = load(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise InputError(f"can't read {path}: {first_line(error)}; remove it to learn the block again") from error
        written = state.pop(DIGEST, None)
        if written is None or not torch.equal(written, self._digest(index, state)):
            raise InputError(f"{path} is damaged, or of another block or run: remove it to learn the block again")
        return state

    def write(self, index: int, state: dict[str, Tensor]) -> None:
        """Keep a block. Raises InputError where that can't be written."""
        held = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        write_atomically(self._path(index), save({**held, DIGEST: self._digest(index, held)}))

    def _digest(self, index: int, state: dict[str, Tensor]) -> Tensor:
        return digest_tensor(state, f"block {index} of {self._identity}\n")

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.safetensors"


def identity_of(model: QuantizedModel, images: Rows) -> dict[str, str]:
    """What a run must have in common with the one that it continues: to the bit, it is the same then."""
    pixels = hashlib.sha256()
    for start in range(0, images.written, AT_ONCE):
        pixels.update(images.read(slice(start, start + AT_ONCE)).contiguous().numpy().tobytes())
    recipe = {name: str(value) for name, value in asdict(model.recipe).items() if not name.startswith(AFTERWARDS)}
    return {
        **recipe,
        "model": tensors_digest(model.state_dict()),
        "images": f"{images.written} images, {pixels.hexdigest()}",
        "device": device_of(model).type,
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }


def _read_header(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {path}: {first_line(error)}; give another folder") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} describes no run; give another folder")
    return found


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 24 else f"{text[:23]}…"

"""Runs as TensorBoard's event files, a folder each, with their settings as hyperparameters.
Which runs there are is for those to say who log them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.logbook.logbook import Settings, Values

FINISHED = "finished"  # a file in a run's folder, which TensorBoard passes over


class TensorBoardLogbook:
    """A folder of runs' folders."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError where tensorboard isn't installed, or the folder can't be written to."""
        require_tensorboard()
        self.folder = Path(folder)
        require_writable(self.folder / FINISHED)

    def has(self, key: str) -> bool:
        """Whether a run of this key is finished."""
        return any(self.folder.glob(f"*_{key}/{FINISHED}"))

    def run(self, name: str, key: str, settings: Settings) -> TensorBoardRun:
        """Begin, or begin again: of what is there already TensorBoard shows no step."""
        plain = re.sub(r"[^\w.=,-]+", "_", name)
        return TensorBoardRun(self.folder / f"{plain}_{key}", settings)


class TensorBoardRun:
    """A run's folder. Scalars are there after each step."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._settings = folder, settings
        (folder / FINISHED).unlink(missing_ok=True)
        self._writer: Any = SummaryWriter(str(folder), purge_step=0)
        self._names: dict[str, float] = {}

    def log(self, values: Values, step: int) -> None:
        """A scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._names |= values

    def finish(self) -> None:
        """Write the settings, beside the names of the scalars that they led to."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(dict(self._settings), self._names):
            self._writer.file_writer.add_summary(summary)
        self._writer.close()
        write_atomically(self._folder / FINISHED, b"")


def require_tensorboard() -> None:
    """Raise InputError where it isn't installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--tensorboard needs TensorBoard, which isn't installed: pip install 'pytorch-quantizer[tensorboard]'"
        ) from error

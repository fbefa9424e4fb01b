"""The cells of a result table, each measured once and kept in a file named after everything that determines it.
Which recipes a table holds is the table's business: ablation.py, benchmarks/methods.py.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.data import calibration_loader, make_loader
from pytorch_quantizer.data.digest import images_digest
from pytorch_quantizer.digests import tensors_digest
from pytorch_quantizer.environment import choose_device, versions
from pytorch_quantizer.evaluation import evaluate
from pytorch_quantizer.experiments.inference_config import ResolvedConfig, load_images, load_model
from pytorch_quantizer.experiments.quantize_job import is_learned
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantize import quantize

PACKAGE = Path(__file__).parents[1]
# What can't change a number: reports, the command lines, training.
SILENT = (
    *("atomic.py", "command_line.py", "flag_parser.py", "commands", "logbook", "reports", "sweeps", "training"),
    *(f"experiments/leaderboard{part}.py" for part in ("", "_cells", "_table")),
    "experiments/trained_cell.py",
    *("experiments/ablation.py", "experiments/cells.py", "experiments/report.py", "experiments/sensitivity_report.py"),
    *("experiments/model_files.py", "experiments/quantizing.py", "experiments/saved_model.py", "experiments/speed.py"),
    # Rows, weights and images are in the cells' keys.
    *(f"experiments/reproduce{part}.py" for part in ("", "_command", "_text", "_weights")),
)

OF_CALIBRATION = ("calibration_images", "calibration_split", "calibration_samples", "seed")  # in a cell's key

Key = Mapping[str, Any]


class CellStore:
    """Cells in a folder, a JSON file each, written whole or not at all; a key is a JSON object."""

    def __init__(self, folder: Path, *, any_code: bool = False) -> None:
        """any_code: take cells of other versions of the code too. Raises InputError where nothing can be written."""
        self.folder, self.any_code = Path(folder), any_code
        require_writable(self.folder / "cell.json")

    def read(self, key: Key) -> dict[str, Any] | None:
        """What was written for this key by this version of the code; None where nothing was, or the file is damaged."""
        try:
            found: dict[str, Any] = json.loads(self._path(key).read_text(encoding="utf-8"))
            fits = found["key"] == plain(key) and (self.any_code or found["code"] == code_digest())
            return {**found["values"], "code": found["code"]} if fits else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, key: Key, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the values; give what ``read`` would."""
        content = {"key": plain(key), "code": code_digest(), "values": plain(values)}
        write_atomically(self._path(key), f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode())
        return {**plain(values), "code": code_digest()}

    def unfinished(self, key: Key) -> Path:
        """The folder for what a cell keeps until it is finished."""
        return self.folder / "unfinished" / self._path(key).stem

    def _path(self, key: Key) -> Path:
        text = json.dumps(plain(key), sort_keys=True, allow_nan=False)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


class Network:
    """A float network and its images; measures it under recipes, each once."""

    def __init__(
        self, config: ResolvedConfig, store: CellStore, *, max_memory: int | None = None, progress: bool = False
    ) -> None:
        """Load both. max_memory: as quantize()'s, where a recipe learns; it changes no number. progress: shows bars.

        Raises InputError as load_images, load_model and the loaders do.
        """
        self.config, self.store, self.max_memory, self.progress = config, store, max_memory, progress
        self.device = choose_device(config.device)
        self.test, self.calibration, self.split = load_images(config)
        self.model: nn.Module = load_model(config, self.test).to(self.device)
        self.evaluated = make_loader(self.test, config.batch_size, limit=config.limit)
        self.drawn = calibration_loader(
            self.calibration, config.calibration_samples, batch_size=config.batch_size, seed=config.seed
        )
        self._key = self._shared_key()

    def measure(self, recipe: Recipe | None) -> dict[str, Any]:
        """top1, top5 and top1_interval as fractions of 1, correct and samples as counts, seconds, code, and kept.

        quantizing_seconds: those before the evaluation, of a cell that was stopped those since. recipe None: the float
        network. kept: whether the store held it. Ranges are calibrated anew for every recipe; reconstruction that was
        stopped goes on behind its last finished block.
        Raises InputError for a recipe that can't be carried out on this network.
        """
        key = self.key_of(recipe)
        found = self.measure_made(key, lambda: self.model if recipe is None else self._quantized(recipe, key))
        shutil.rmtree(self.store.unfinished(key), ignore_errors=True)
        return found

    def measure_made(self, key: Key, made: Callable[[], nn.Module]) -> dict[str, Any]:
        """What ``measure`` gives, of a network that is made only where the store holds nothing under this key."""
        found = self.store.read(key)
        if found is not None:
            return found | {"kept": True}
        start = time.perf_counter()
        model = made()
        quantizing = time.perf_counter() - start
        evaluation = evaluate(model, self.evaluated, device=self.device, progress=self.progress)
        calibrated = [] if key["recipe"] is None else self.calibration.skipped
        values = {
            "top1": evaluation.top1,
            "top5": evaluation.top5,
            "top1_interval": list(evaluation.top1_interval),
            "correct": round(evaluation.top1 * evaluation.samples),
            "samples": evaluation.samples,
            "skipped_images": list(dict.fromkeys([*self.test.skipped, *calibrated])),
            "seconds": round(time.perf_counter() - start, 1),
            "quantizing_seconds": round(quantizing, 1),
        }
        return self.store.write(key, values) | {"kept": False}

    def kept(self, recipe: Recipe | None) -> dict[str, Any] | None:
        """What ``measure`` gives, where the store holds it; else None, and nothing is computed."""
        found = self.store.read(self.key_of(recipe))
        return None if found is None else found | {"kept": True}

    def key_of(self, recipe: Recipe | None) -> dict[str, Any]:
        """What determines the cell of a recipe, beside the code; another table adds what else it depends on."""
        if recipe is None:  # in float nothing is drawn or calibrated
            return {name: value for name, value in self._key.items() if name not in OF_CALIBRATION} | {"recipe": None}
        return {**self._key, "recipe": settings(recipe)}

    def _quantized(self, recipe: Recipe, key: Key) -> nn.Module:
        # Blocks of other code or of another number of threads are no beginning of this cell.
        resume = self.store.unfinished(key) / f"{code_digest()}_{torch.get_num_threads()}"
        return quantize(
            self.model,
            recipe,
            self.drawn,
            strict=self.config.strict,
            max_memory=self.max_memory if is_learned(recipe) else None,
            resume=resume if recipe.reconstruction != "none" else None,
            progress=self.progress,
        )

    def _shared_key(self) -> dict[str, Any]:
        """What determines a cell, beside its recipe and the code."""
        config = self.config
        return {
            "dataset": config.dataset,
            "arch": config.arch,
            "weights": weights_digest(self.model),
            "test_images": images_digest(self.test),
            "calibration_images": images_digest(self.calibration),
            "calibration_split": self.split,
            "calibration_samples": config.calibration_samples,
            "seed": config.seed,
            "limit": config.limit,
            "batch_size": config.batch_size,
            "strict": config.strict,
            "skip_corrupt": config.skip_corrupt,
            "device": self.device.type,
        }


def settings(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields as JSON has them, without its name: two names for the same thing are one cell."""
    return {name: value for name, value in plain(asdict(recipe)).items() if name != "name"}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as it comes back from a JSON file: tuples are lists."""
    back: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    return back


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over parameters and buffers, whatever file they came from."""
    return tensors_digest(model.state_dict())


@functools.cache
def code_digest(*, any_machine: bool = False) -> str:
    """SHA-256 over those of the package's sources and kernels that can change a number, and its libraries' versions.

    any_machine: what the kernels find on this one is left out, so that installations on different ones are equal.
    """
    said = {name: version for name, version in versions().items() if not (any_machine and name == "kernels")}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for path in sorted(path for pattern in ("*.py", "*.so") for path in PACKAGE.rglob(pattern)):
        name = path.relative_to(PACKAGE)
        if not any(name.is_relative_to(silent) for silent in SILENT):
            digest.update(str(name).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

"""A table's rows measured as they are deployed: files on disk, what runs from them, its rates and its times.
What is finished is kept (cells.py). Which rows there are is reproduce.py's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pytorch_quantizer.atomic import atomic_path
from pytorch_quantizer.data import load_dataset, make_loader
from pytorch_quantizer.environment import machine
from pytorch_quantizer.evaluation import Evaluation, compare_latency, evaluate
from pytorch_quantizer.experiments.cells import CellStore, Network
from pytorch_quantizer.experiments.reproduce import ONNX_RUNTIME, PYTORCH, RATES, Row, Table, Timing
from pytorch_quantizer.experiments.reproduce_unfused import unfused
from pytorch_quantizer.experiments.trained_cell import trained_key, trained_model
from pytorch_quantizer.export.checkpoint import load, save
from pytorch_quantizer.export.onnx import export_onnx
from pytorch_quantizer.export.onnx_packages import package
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel, operator_report
from pytorch_quantizer.export.onnx_types import adds_exactly
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.models import default_preprocessing
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantize import quantize

FLOAT = Recipe(name="float32", weights="float32", activations="float32", bias="float32", deployable=False)
RUNTIMES = ("onnx", "onnxscript", "onnxruntime")  # libraries whose versions decide what an ONNX row gives


Quantized: TypeAlias = tuple[nn.Module, QuantizedModel | None]


class Deployment(nn.Module):
    """A model as a row has it; it takes any number of images, `batch` at a time: [N, C, H, W] -> [N, classes].

    execution, runtime, threads: as compare_latency wants them; PyTorch's threads are its caller's. files: what was
    written of it, by kind. simulated: the model in PyTorch that says what this one should compute. choice: in which
    type 8-bit weights run, and why.
    """

    def __init__(
        self, model: nn.Module, files: dict[str, Path], simulated: nn.Module | None = None, choice: str | None = None
    ) -> None:
        super().__init__()
        self.model, self.files, self.choice = model, files, choice
        self._simulated = (simulated,)  # in a tuple: no part of this module
        self.execution = getattr(model, "execution", "simulated" if hasattr(model, "sites") else "float32")
        self.runtime = getattr(model, "runtime", f"{PYTORCH} {torch.__version__.partition('+')[0]}")
        if hasattr(model, "threads"):
            self.threads = model.threads
        self.batch = 1

    @property
    def simulated(self) -> nn.Module | None:
        """The model whose predictions this one is compared with."""
        return self._simulated[0]

    def forward(self, images: Tensor) -> Tensor:
        """All batches, one after the other."""
        parts = [self.model(part) for part in images.split(self.batch)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True)
class TableRun:
    """A table on a network and its images; its measurements are kept in ``store``, its models' files in ``folder``."""

    table: Table
    network: Network
    store: CellStore
    folder: Path
    threads: int
    _quantized: dict[str, Quantized] = field(default_factory=dict)  # by row
    _deployed: dict[tuple[str, int], Deployment] = field(default_factory=dict)  # by row and size of images

    def rates(self, row: Row) -> dict[str, Any]:
        """What the deployed model gets right, with whom it agrees, and its files' bytes; ``kept``: was in the store.

        Raises InputError for a row that can't be carried out on this network.
        """
        return self._once(self.key_of(row), lambda: self._rates(row))

    def times(self, timing: Timing, *, again: bool = False) -> dict[str, Any]:
        """By row's name, the fields of Latency; all rows take turns, so that they can be compared.

        again: whatever was kept. Raises InputError as rates() does.
        """
        processor = {name: machine()[name] for name in ("processor", "cores")}
        rows = [self.key_of(row) for row in self.table.rows]
        key = {"timing": asdict(timing), "rows": rows, "threads": self.threads, **processor}
        return self._once(key, lambda: self._times(timing), again=again)

    def key_of(self, row: Row) -> dict[str, Any]:
        """What determines a row's rates, beside the code; of the CPU that for which an export chooses types."""
        recipe, made = recipe_of(row), self.network.key_of(recipe_of(row))
        if recipe is not None and row.epochs:
            made = trained_key(self.network, recipe, row.epochs, self.folder)
        key = {**made, "runtime": row.runtime, "fused": row.fused}
        return key | versions_of(RUNTIMES) | {"exact": adds_exactly()} if row.runtime == ONNX_RUNTIME else key

    def deployed(self, row: Row, images: Tensor) -> Deployment:
        """The row's model made ready for images [N, C, H, W] of this size and its files written, once in a run."""
        place = (row.name, images.shape[-1])
        if place not in self._deployed:
            made = deployed_onnx if row.runtime == ONNX_RUNTIME else deployed_pytorch
            stem = self.folder / f"{re.sub('[^a-z0-9]+', '_', row.name.lower()).strip('_')}_{images.shape[-1]}"
            self._deployed[place] = made(*self._quantize(row), stem, images, self.threads)
        return self._deployed[place]

    def images(self, timing: Timing | None = None) -> Tensor:
        """What is timed, [N, C, H, W] with N images spread evenly over the test set; None: one as it is evaluated."""
        config = self.network.config
        size = config.image_size if timing is None or timing.size is None else timing.size
        dataset = load_dataset(
            config.dataset, config.data, preprocessing=default_preprocessing(config.arch, config.dataset, size)
        )
        number = 1 if timing is None else timing.images or config.limit
        return torch.cat([batch for batch, _ in make_loader(dataset, config.batch_size, limit=number)])

    def _quantize(self, row: Row) -> Quantized:
        """The row's float network, and the quantized one where it has a recipe."""
        if row.name not in self._quantized:
            model = self.network.model if row.fused else unfused(self.network.model)
            self._quantized[row.name] = model, self._made(row, model)
        return self._quantized[row.name]

    def _made(self, row: Row, model: nn.Module) -> QuantizedModel | None:
        recipe = recipe_of(row)
        if recipe is None:
            return None
        if row.epochs:
            return trained_model(self.network, recipe, row.epochs, self.folder)
        return quantize(model, recipe, self.network.drawn, progress=False)

    def _rates(self, row: Row) -> dict[str, Any]:
        model = self.deployed(row, self.images())
        model.batch = self.network.config.batch_size
        found = evaluate(model, self.network.evaluated, reference=model.simulated, device="cpu", progress=False)
        sizes = {f"{kind}_bytes": path.stat().st_size for kind, path in model.files.items()}
        ran = {"execution": model.execution, "runtime": model.runtime, "floats": floats_of(row, model)}
        ran["choice"] = model.choice
        return rates_of(found) | sizes | ran

    def _times(self, timing: Timing) -> dict[str, Any]:
        images = self.images(timing)
        models = {row.name: self.deployed(row, images) for row in self.table.rows}
        for model in models.values():
            model.batch = timing.batch
        found = compare_latency(models, images, threads=self.threads, progress=False)
        return {name: latency.as_dict() for name, latency in found.items()}

    def _once(
        self, key: dict[str, Any], compute: Callable[[], dict[str, Any]], *, again: bool = False
    ) -> dict[str, Any]:
        found = None if again else self.store.read(key)
        if found is not None:
            return found | {"kept": True}
        start = time.perf_counter()
        values = compute()
        return self.store.write(key, values | {"seconds": round(time.perf_counter() - start, 1)}) | {"kept": False}


def versions_of(libraries: tuple[str, ...]) -> dict[str, str]:
    """Each library's version. Raises InputError, with the remedy, where one isn't installed."""
    return {name: metadata.version(name) for name in libraries if package(name)}


def recipe_of(row: Row) -> Recipe | None:
    """The row's recipe; None for the float network. Raises InputError for a name that is no shipped recipe's."""
    return Recipe.load(row.recipe) if isinstance(row.recipe, str) else row.recipe


def deployed_pytorch(
    model: nn.Module, quantized: QuantizedModel | None, stem: Path, images: Tensor, threads: int
) -> Deployment:
    """The float network, or the simulated model as it comes out of its packed checkpoint."""
    path = stem.with_suffix(".safetensors")
    save_weights(model, quantized, path)
    return Deployment(model if quantized is None else load(path, model=model), {"checkpoint": path})


def deployed_onnx(
    model: nn.Module, quantized: QuantizedModel | None, stem: Path, images: Tensor, threads: int
) -> Deployment:
    """What ONNX Runtime makes of the exported file; the checkpoint is written too, for its size."""
    files = {"checkpoint": stem.with_suffix(".safetensors"), "onnx": stem.with_suffix(".onnx")}
    save_weights(model, quantized, files["checkpoint"])
    simulated = quantize(model, FLOAT, images, progress=False) if quantized is None else quantized
    export = export_onnx(simulated, files["onnx"], images[:1])
    choice = None if quantized is None else export.why
    return Deployment(OnnxRuntimeModel(files["onnx"], threads=threads), files, simulated, choice)


def floats_of(row: Row, model: Deployment) -> list[str]:
    """The layers and additions of a quantized row that ONNX Runtime computes in float, asked for or not."""
    if row.runtime != ONNX_RUNTIME or row.recipe is None:
        return []
    return operator_report(model.files["onnx"]).floats


def save_weights(model: nn.Module, quantized: QuantizedModel | None, path: Path) -> None:
    """Write the packed checkpoint, or of a float network its state dict as safetensors."""
    if quantized is not None:
        save(quantized, path)
        return
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def rates_of(found: Evaluation) -> dict[str, Any]:
    """Rates as fractions of 1, precision, recall and F1 as macro averages; ``simulated_top1`` of the reference."""
    macro = {name: getattr(found, name)["macro"] for name in RATES if name != "top1"}
    reference = None if found.reference is None else found.reference.top1
    return {
        "samples": found.samples,
        "correct": round(found.top1 * found.samples),
        "top1": found.top1,
        "top1_interval": list(found.top1_interval),
        **macro,
        "simulated_top1": reference,
        "agreement": found.agreement,
    }

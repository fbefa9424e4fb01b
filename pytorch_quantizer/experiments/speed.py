"""How fast a network runs, and how large its file is, in every form it can take: one table.
Kernels by themselves are timed in benchmarks/; how a pass is timed is evaluation/latency.py's business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation import Latency, file_bytes, file_label, latency_by_batch
from pytorch_quantizer.evaluation.latency import check_counts
from pytorch_quantizer.experiments.inference_config import ResolvedConfig
from pytorch_quantizer.experiments.quantizing import Networks
from pytorch_quantizer.export.onnx import export_onnx
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantize import quantize

FLOAT = Recipe(name="float32", weights="float32", activations="float32", bias="float32", deployable=False)
FLOAT_NAME, SIMULATED_NAME = "float32", "quantized"
FILES = ("bench.csv", "bench.json")


@dataclass(frozen=True)
class Timing:
    """batches: numbers of images. threads: of the CPU, None for torch's. repeats: timed passes, None for enough.

    Raises InputError where there are fewer than one.
    """

    batches: tuple[int, ...] = (1, 32)
    threads: int | None = None
    repeats: int | None = None

    def __post_init__(self) -> None:
        """Told before anything is quantized."""
        check_counts(threads=self.threads, repeats=self.repeats)


@dataclass(frozen=True)
class Speed:
    """rows: a Latency as a dict with `model`, `bytes` and `file`, a row a form and batch.

    left_out: forms that there are no rows of, with the reason. record: what it was measured on.
    """

    rows: list[dict[str, Any]]
    left_out: dict[str, str]
    record: dict[str, Any] = field(default_factory=dict)


def measure_speed(networks: Networks, timing: Timing) -> Speed:
    """Time float32 and quantized in PyTorch, and what ONNX Runtime makes of both, in turns; measure their files.

    ONNX Runtime runs on the CPU: with images elsewhere, without the extra [onnx] and for what can't be exported its
    forms are left out. Raises InputError for a batch or a number of threads below 1.
    """
    images = enough(networks.images, max(timing.batches, default=1))
    models: dict[str, nn.Module] = {FLOAT_NAME: networks.model, SIMULATED_NAME: networks.quantized}
    with TemporaryDirectory() as folder:
        exported, left_out = onnx_models(networks, Path(folder), timing.threads)
        models |= exported
        timed = latency_by_batch(models, images, timing.batches, threads=timing.threads, repeats=timing.repeats)
        rows = [_row(name, model, latency) for name, model in models.items() for latency in timed[name]]
    return Speed(rows, left_out)


def run_speed(networks: Networks, config: ResolvedConfig, timing: Timing) -> Speed:
    """Measure the networks that ``config`` describes, with a record. Raises InputError as measure_speed does."""
    speed = measure_speed(networks, timing)
    record = {
        **config.subject,
        "image": list(networks.images.shape[1:]),
        "recipe": asdict(networks.quantized.recipe),
        **provenance(networks.images.device, "onnx", "onnxruntime"),
    }
    return Speed(speed.rows, speed.left_out, record)


def onnx_models(networks: Networks, folder: Path, threads: int | None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """(by name, what ONNX Runtime runs of files written into folder; the forms there are none of, with the reason)."""
    images = networks.images
    found: dict[str, nn.Module] = {}
    left_out: dict[str, str] = {}
    for name, of in ((FLOAT_NAME, networks.model), (SIMULATED_NAME, networks.quantized)):
        form = f"{name}, ONNX"
        try:
            if images.device.type != "cpu":
                raise InputError(f"ONNX Runtime runs on the CPU here, the images are on {images.device.type}")
            simulated = of if isinstance(of, QuantizedModel) else quantize(of, FLOAT, images, progress=False)
            export_onnx(simulated, folder / f"{name}.onnx", images[:1])
            found[form] = OnnxRuntimeModel(folder / f"{name}.onnx", threads=threads)
        except InputError as error:
            left_out[form] = str(error)
    return found, left_out


def enough(images: Tensor, number: int) -> Tensor:
    """The first `number` of images [N, C, H, W], which are taken again where there are fewer."""
    return torch.cat([images] * -(-max(number, 1) // len(images)))[:number]


def _row(name: str, model: nn.Module, latency: Latency) -> dict[str, Any]:
    return {"model": name, **latency.as_dict(), "bytes": file_bytes(model), "file": file_label(model)}


def speed_text(speed: Speed) -> str:
    """The table for people, a line a form and batch; behind it what was left out."""
    fp32 = {row["batch_size"]: row["median_ms"] for row in speed.rows if row["model"] == FLOAT_NAME}
    lines = [("model", "batch", "ms", "10 – 90 %", "of float32", "bytes", "runs as", "by")]
    for row in speed.rows:
        spread = f"{row['p10_ms']:.2f} – {row['p90_ms']:.2f}"
        ratio = f"{row['median_ms'] / fp32[row['batch_size']]:.2f} x"
        sizes = (str(row["batch_size"]), f"{row['median_ms']:.2f}", spread, ratio, f"{row['bytes']:,}")
        lines.append((row["model"], *sizes, row["label"], row["runtime"]))
    text = ["{:<18}{:>6}{:>10}{:>18}{:>12}{:>14}   {:<20}{}".format(*line).rstrip() for line in lines]
    return "\n".join([*text, *(f"{form} is left out: {reason}" for form, reason in speed.left_out.items())])


def write_speed(speed: Speed, folder: Path) -> None:
    """Write bench.csv and bench.json, each whole or not at all."""
    content: Mapping[str, Any] = {**speed.record, "rows": speed.rows, "left_out": speed.left_out}
    contents: Sequence[str] = (pd.DataFrame(speed.rows).to_csv(index=False), json.dumps(content, indent=2) + "\n")
    for name, text in zip(FILES, contents, strict=True):
        write_atomically(folder / name, text.encode())

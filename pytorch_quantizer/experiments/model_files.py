"""The model of a run as files to take along: its packed checkpoint, and ONNX with how fast ONNX Runtime runs it.
The report of the run itself is report.py's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation import file_bytes, file_label, latency_by_batch
from pytorch_quantizer.evaluation.latency import PARTLY
from pytorch_quantizer.export.checkpoint import save
from pytorch_quantizer.export.onnx import NEEDED, export_onnx
from pytorch_quantizer.export.onnx_packages import package
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel, operator_report
from pytorch_quantizer.export.onnx_types import check_weight_type
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe


class Written(NamedTuple):
    """lines: for people. exported: of the ONNX file, as result.json has the other networks; None without one."""

    lines: list[str]
    exported: dict[str, Any] | None


@dataclass(frozen=True)
class ModelFiles:
    """Which files to write, None for none; each field's ``metadata["help"]`` is its flag's help."""

    save: Path | None = field(default=None, metadata={"help": "write the quantized model there: pq.load reads it"})
    export_onnx: Path | None = field(
        default=None, metadata={"help": "write it as ONNX there, and time what ONNX Runtime makes of it"}
    )
    weight_type: str = field(
        default="auto", metadata={"help": "in the ONNX file, of weights of 8 bits and fewer: auto, int8 or uint8"}
    )
    storage: bool = field(
        default=False,
        metadata={"help": "in the ONNX file weights of 4 bits and fewer as INT4: smaller, not in integers"},
    )

    def check(self, recipe: Recipe | None = None) -> None:
        """Raise InputError now where ``write`` would after the work.

        A path can't be written, a package is missing, or the recipe makes what ONNX can't hold.
        """
        check_weight_type(self.weight_type)
        for path in (self.save, self.export_onnx):
            if path is not None:
                require_writable(path)
        if self.export_onnx is not None:
            for name in (*NEEDED, "onnxruntime"):
                package(name)
            if recipe is not None and recipe.activation_allocation != "none":
                raise InputError(
                    f"--export-onnx: activation_allocation {recipe.activation_allocation} gives channels ranges and "
                    "widths of their own, which ONNX has no operator for: set activation_allocation none, or leave "
                    "--export-onnx out"
                )

    def write(self, model: QuantizedModel, images: Tensor) -> list[str]:
        """Write them; lines for people. images: [N, C, H, W], an example, and what is timed: one of them, and all."""
        return self.write_measured(model, images).lines

    def write_measured(self, model: QuantizedModel, images: Tensor) -> Written:
        """As ``write``, with what was measured of the ONNX file beside the lines."""
        lines: list[str] = []
        exported: dict[str, Any] | None = None
        if self.save is not None:
            save(model, self.save)
            lines.append(f"{self.save}: {self.save.stat().st_size:,} bytes, packed checkpoint")
        if self.export_onnx is not None:
            written = export_onnx(model, self.export_onnx, images, weight_type=self.weight_type, storage=self.storage)
            running, ran = OnnxRuntimeModel(self.export_onnx), operator_report(self.export_onnx)
            if written.label == "integer" and not ran.runs_in_integers:
                written, running.execution = replace(written, label=PARTLY), PARTLY
            lines += [str(written), str(ran)]
            timed = latency_by_batch({"ONNX": running}, images.cpu(), sorted({1, len(images)}))["ONNX"]
            lines += [str(latency) for latency in timed]
            exported = {"latency": [latency.as_dict() for latency in timed], "execution": timed[-1].label}
            exported |= {"size_bytes": file_bytes(running), "size_label": file_label(running)}
        return Written(lines, exported)

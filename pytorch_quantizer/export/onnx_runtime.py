"""An exported file run by ONNX Runtime: a module that evaluate and measure_latency take, and its codes by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.export.onnx_file import read_content
from pytorch_quantizer.export.onnx_packages import package
from pytorch_quantizer.export.onnx_report import OperatorReport, operator_report
from pytorch_quantizer.export.onnx_session import session

__all__ = ["OnnxRuntimeModel", "OperatorReport", "operator_report"]

DEQUANTIZED = "dequantized-weights"  # what ONNX Runtime computes with where weights are INT4


class OnnxRuntimeModel(nn.Module):
    """A file of ``export_onnx`` on the CPU: images [N, …] → logits, float32.

    threads: of ONNX Runtime, None for as many as torch has now; where more than one, those that wait sleep, and take
    nothing from torch's. Raises InputError for a file that isn't one, and where onnxruntime is missing.
    """

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        super().__init__()
        self.path, self.threads = Path(path), threads or torch.get_num_threads()
        self.content = read_content(path)
        self.label = str(self.content["label"])
        self.execution = DEQUANTIZED if self.label == "storage" else self.label  # these two for evaluation/latency.py
        self.runtime = f"ONNX Runtime {package('onnxruntime').__version__}"
        self.session = session(self.path, self.threads)
        self._codes: Any = None  # made when codes are asked for

    def forward(self, images: Tensor) -> Tensor:
        """The file's first output."""
        return self._run(self.session, images)[0]

    def codes(self, images: Tensor) -> dict[str, Tensor]:
        """Site → the codes of its tensor as ONNX Runtime computes them on the way to the logits, int32."""
        sites = self.content["sites"]
        if self._codes is None:
            names = [site["tensor"] for site in sites.values()]
            self._codes = session(_with_outputs(self.path, names), self.threads)
        found = self._run(self._codes, images)[-len(sites) :] if sites else []
        return {name: codes.int() - sites[name]["shift"] for name, codes in zip(sites, found, strict=True)}

    def _run(self, running: Any, images: Tensor) -> list[Tensor]:
        given = {running.get_inputs()[0].name: np.ascontiguousarray(images.detach().cpu().numpy())}
        try:
            return [torch.from_numpy(found) for found in running.run(None, given)]
        except Exception as error:  # onnxruntime's own have no common class
            raise InputError(f"{self.path} doesn't run on images {list(images.shape)}: {first_line(error)}") from error


def _with_outputs(path: Path, names: list[str]) -> bytes:
    """The file with more of its tensors as outputs, after its own."""
    onnx = package("onnx")
    model = onnx.load(str(path))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    data: bytes = model.SerializeToString()
    return data

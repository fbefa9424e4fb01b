"""The same network in integers as others make it: ONNX Runtime's own quantize_static, torch.ao's FX int8; and in float.

Peers only: nothing of the package uses them. Each is a module that says how it runs, as evaluation/latency.py asks.
"""

import copy
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from pytorch_quantizer.export.onnx_session import session

OPSET = 21
INPUT = "images"
ENGINES = ("fbgemm", "onednn")
STATIC = {  # name → what quantize_static is asked for beside uint8 activations and a scale a channel of weights
    "int8": {"weight_type": QuantType.QInt8},
    "uint8": {"weight_type": QuantType.QUInt8},
    "int7": {"weight_type": QuantType.QInt8, "reduce_range": True},
}


class OnnxFile(nn.Module):
    """An ONNX file, whoever wrote it, run by ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int, execution: str) -> None:
        super().__init__()
        self.path, self.threads, self.execution = path, threads, execution
        self.runtime = f"ONNX Runtime {onnxruntime.__version__}"
        self.session = session(path, threads)

    def forward(self, images: Tensor) -> Tensor:
        """Its first output."""
        return torch.from_numpy(self.session.run(None, {INPUT: np.ascontiguousarray(images.numpy())})[0])


class ByEngine(nn.Module):
    """A model converted by torch.ao, run by one engine of torch's quantized kernels."""

    execution = "integer"

    def __init__(self, model: nn.Module, engine: str) -> None:
        super().__init__()
        self.model, self.engine = model, engine
        self.runtime = f"PyTorch {torch.__version__.partition('+')[0]}, {engine}"

    def forward(self, images: Tensor) -> Tensor:
        """The model's output."""
        return self.model(images)


def export_float(model: nn.Module, images: Tensor, path: Path) -> None:
    """A float network as torch.onnx exports it, any number of images in a batch; prepared for quantize_static."""
    shapes = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of its own deprecations
        names = {"input_names": [INPUT], "output_names": ["logits"]}
        pair = images[:1].expand(2, *images.shape[1:]).contiguous()  # torch.export takes a batch of one for a constant
        exported = torch.onnx.export(
            model, (pair,), dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, verbose=False, **names
        )
        exported.save(Path(folder) / "float.onnx")
        quant_pre_process(Path(folder) / "float.onnx", path, skip_symbolic_shape=True)


class Batches(CalibrationDataReader):
    """Images, one at a time, as quantize_static reads them."""

    def __init__(self, images: Tensor) -> None:
        self.images: Iterator[Any] = iter(images.numpy())

    def get_next(self) -> dict[str, Any] | None:
        """The next image [1, C, H, W] by the name of the input, None after the last."""
        image = next(self.images, None)
        return None if image is None else {INPUT: image[None]}


def export_static(source: Path, images: Tensor, path: Path, kind: str) -> None:
    """quantize_static's QDQ model of a float one: uint8 activations, weights by STATIC's `kind`, a scale a channel."""
    options = {"quant_format": QuantFormat.QDQ, "per_channel": True, "activation_type": QuantType.QUInt8}
    quantize_static(source, path, Batches(images), **options | STATIC[kind])


def by_torch_ao(model: nn.Module, images: Tensor, engine: str) -> ByEngine:
    """torch.ao's FX int8 with the engine's own settings, calibrated on `images`."""
    with warnings.catch_warnings(), _engine(engine):
        warnings.simplefilter("ignore")  # it is announced for removal
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping(engine), (images[:1],))
        with torch.no_grad():
            prepared(images)
        return ByEngine(convert_fx(prepared), engine)


@contextmanager
def _engine(name: str) -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def operators(path: Path) -> dict[str, int]:
    """How many of each operator ONNX Runtime runs of a file, in the graph that it makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(path, 1, optimized)
        found = [node.op_type for node in onnx.load(str(optimized)).graph.node]
    return {kind: found.count(kind) for kind in sorted(set(found))}

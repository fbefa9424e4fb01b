"""pytorch_quantizer: quantization research on PyTorch vision models."""

from pytorch_quantizer.backend import backend
from pytorch_quantizer.calibration.statistics_file import load_statistics, merge_statistics, save_statistics
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation import evaluate
from pytorch_quantizer.export.checkpoint import load, save
from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.export.onnx import OnnxExport, export_onnx
from pytorch_quantizer.export.onnx_report import OperatorReport, operator_report
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel
from pytorch_quantizer.graph.capture import capture
from pytorch_quantizer.graph.fold import fold
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.qparams import QParams
from pytorch_quantizer.quantization.qtypes import IntQuantizer, Quantizer
from pytorch_quantizer.quantization.recipe import Override, Recipe
from pytorch_quantizer.quantization.statistics import TensorStatistics
from pytorch_quantizer.quantize import quantize
from pytorch_quantizer.user_warnings import QuantizerWarning

__all__ = [
    "InputError",
    "IntQuantizer",
    "IntegerModel",
    "OnnxExport",
    "OnnxRuntimeModel",
    "OperatorReport",
    "Override",
    "QParams",
    "QuantizedModel",
    "Quantizer",
    "QuantizerWarning",
    "Recipe",
    "Site",
    "TensorStatistics",
    "backend",
    "capture",
    "evaluate",
    "export_onnx",
    "fold",
    "load",
    "load_statistics",
    "merge_statistics",
    "operator_report",
    "quantize",
    "save",
    "save_statistics",
]

"""The kernels in plain PyTorch: the specification they are tested against, bit for bit, and what runs without them.
Nothing here checks arguments (ops/ does), carries a graph, or is meant to be fast. It imports torch alone.
"""

from pytorch_quantizer.reference.codebook import codebook_dequantize, codebook_fake_quantize, codebook_quantize
from pytorch_quantizer.reference.learnable import learnable_fake_quantize_backward
from pytorch_quantizer.reference.online import online_fake_quantize
from pytorch_quantizer.reference.packing import pack, unpack
from pytorch_quantizer.reference.rounding import uniform24
from pytorch_quantizer.reference.statistics import growing_histogram, histogram, tensor_statistics
from pytorch_quantizer.reference.uniform import (
    dequantize,
    fake_quantize,
    fake_quantize_,
    fake_quantize_backward,
    fused_fake_quantize,
    quantize,
    smallest_dtype,
)

__all__ = [
    "codebook_dequantize",
    "codebook_fake_quantize",
    "codebook_quantize",
    "dequantize",
    "fake_quantize",
    "fake_quantize_",
    "fake_quantize_backward",
    "fused_fake_quantize",
    "growing_histogram",
    "histogram",
    "learnable_fake_quantize_backward",
    "online_fake_quantize",
    "pack",
    "quantize",
    "smallest_dtype",
    "tensor_statistics",
    "uniform24",
    "unpack",
]

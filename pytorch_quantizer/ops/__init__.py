"""The Python face of each kernel: argument checks, fake (meta) version, autograd; one file an op family.
The arithmetic lives in kernels/ and, in plain PyTorch, in reference/; which of the two runs is decided in backend.py.

Everywhere: `scale` is float32 and `zero_point` int32, both [] with axis None (per tensor) or [C] with `axis` naming the
dimension of size C (per channel). An s that isn't positive and finite gives NaN; values are never read on the host.
"""

from pytorch_quantizer.fallback import ROUNDINGS
from pytorch_quantizer.ops.codebook import (
    MAX_LEVELS,
    codebook_dequantize,
    codebook_fake_quantize,
    codebook_quantize,
)
from pytorch_quantizer.ops.learnable import learnable_fake_quantize
from pytorch_quantizer.ops.online import online_fake_quantize
from pytorch_quantizer.ops.packing import MAX_PACKED_BITS, pack, packed_bytes, unpack
from pytorch_quantizer.ops.statistics import MAX_BINS, STATISTICS, growing_histogram, histogram, tensor_statistics
from pytorch_quantizer.ops.uniform import dequantize, fake_quantize, fake_quantize_, fused_fake_quantize, quantize

__all__ = [
    "MAX_BINS",
    "MAX_LEVELS",
    "MAX_PACKED_BITS",
    "ROUNDINGS",
    "STATISTICS",
    "codebook_dequantize",
    "codebook_fake_quantize",
    "codebook_quantize",
    "dequantize",
    "fake_quantize",
    "fake_quantize_",
    "fused_fake_quantize",
    "growing_histogram",
    "histogram",
    "learnable_fake_quantize",
    "online_fake_quantize",
    "pack",
    "packed_bytes",
    "quantize",
    "tensor_statistics",
    "unpack",
]

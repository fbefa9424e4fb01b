"""pytorch_quantizer: quantization research on PyTorch vision models."""

from pytorch_quantizer.errors import InputError

__all__ = ["InputError"]

"""Models by name and the weights to fill them with.
What quantization does to a model lives in graph/ and quantization/.
"""

from pytorch_quantizer.models.checkpoint import bundled_checkpoint, load_checkpoint
from pytorch_quantizer.models.cifar_resnet import CifarResNet
from pytorch_quantizer.models.create import create_model, default_preprocessing, list_models
from pytorch_quantizer.models.mlp import MLP

__all__ = [
    "MLP",
    "CifarResNet",
    "bundled_checkpoint",
    "create_model",
    "default_preprocessing",
    "list_models",
    "load_checkpoint",
]

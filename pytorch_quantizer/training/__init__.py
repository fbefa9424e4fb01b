"""Training float networks: what scripts/train.py runs.
Refining quantized ones lives in calibration/.
"""

from pytorch_quantizer.training.config import Augmentation, TrainingConfig
from pytorch_quantizer.training.float_training import train

__all__ = ["Augmentation", "TrainingConfig", "train"]

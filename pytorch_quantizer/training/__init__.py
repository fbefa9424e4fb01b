"""Training networks, float ones and with quantization in the loop: what scripts/train.py runs.
What is particular to training a quantized one lives in calibration/qat.py.
"""

from pytorch_quantizer.training.config import Augmentation, Qat, TrainingConfig
from pytorch_quantizer.training.finished import finished_report
from pytorch_quantizer.training.session import train

__all__ = ["Augmentation", "Qat", "TrainingConfig", "finished_report", "train"]

"""Data sets, their preprocessing and their loaders.
Nothing here downloads; what a network computes on the images lives in evaluation/.
"""

from pytorch_quantizer.data.dataset import CorruptImageError, ImageDataset
from pytorch_quantizer.data.folder import load_unlabelled
from pytorch_quantizer.data.loaders import ImageLoader, calibration_loader, make_loader
from pytorch_quantizer.data.preprocessing import Preprocessing
from pytorch_quantizer.data.registry import DATASETS, has_split, infer_dataset, load_dataset

__all__ = [
    "DATASETS",
    "CorruptImageError",
    "ImageDataset",
    "ImageLoader",
    "Preprocessing",
    "calibration_loader",
    "has_split",
    "infer_dataset",
    "load_dataset",
    "load_unlabelled",
    "make_loader",
]

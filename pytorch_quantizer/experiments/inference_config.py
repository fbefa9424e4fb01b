"""InferenceConfig: which network, which images, how many; and both loaded as it names them.
What is done with them is inference.py's business, and every other job's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from pytorch_quantizer.data import ImageDataset, has_split, infer_dataset, load_dataset, load_unlabelled
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.models import bundled_checkpoint, create_model, default_preprocessing
from pytorch_quantizer.user_path import user_path

DEFAULT_ARCH = {"imagenet": "resnet50", "folder": "resnet50"}  # elsewhere the CIFAR ResNet-20
BUNDLED = {("digits", "resnet20"): "digits_resnet20"}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class InferenceConfig:
    """What to run; each field's ``metadata["help"]`` is its flag's help. The recipe itself is the recipe's business."""

    dataset: str | None = _option(
        None,
        "digits (embedded), mnist, cifar10, imagenet, folder (any ImageFolder); default: what --data holds, or digits",
    )
    data: Path | None = _option(None, "the data set's folder (imagenet: default ~/datasets/ILSVRC2012)")
    arch: str | None = _option(None, "resnet20 … resnet110 (CIFAR), or any torchvision classification model")
    checkpoint: Path | None = _option(None, "weights: .safetensors, .pth, .th; default: bundled, else torchvision's")
    image_size: int | None = _option(None, "pixels that images are brought to, square; default: the network's own")
    calibration_samples: int = _option(1024, "images that ranges are chosen from, drawn from the training split")
    calibration_data: Path | None = _option(
        None, "another folder of images to draw them from, at any depth and without classes"
    )
    batch_size: int = _option(128, "images a batch")
    limit: int | None = _option(None, "evaluate this many images, spread evenly over the data set")
    device: str | None = _option(None, "cpu, cuda or cuda:N; default: the GPU if it works")
    seed: int | None = _option(None, "of the calibration draw, default: 0, and of learning, default: the recipe's")
    strict: bool = _option(False, "stop at a module that can't be captured instead of leaving it in float")
    skip_corrupt: bool = _option(False, "pass over images that can't be decoded, and count them")
    statistics_file: Path | None = _option(
        None, "what calibration saw: read if it is there, else collected and written, for the next run"
    )
    output: Path | None = _option(
        None, "folder for result.json, details.json, layers.csv and .html; default: results/DATASET_ARCH_RECIPE"
    )


@dataclass(frozen=True)
class ResolvedConfig(InferenceConfig):
    """An InferenceConfig in which data set, network and seed are named; see resolved()."""

    dataset: str = "digits"
    arch: str = "resnet20"
    seed: int = 0

    @property
    def subject(self) -> dict[str, Any]:
        """What a record says of it: dataset, arch, checkpoint (None: bundled, or torchvision's) and seed."""
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        return {"dataset": self.dataset, "arch": self.arch, "checkpoint": checkpoint, "seed": self.seed}


def resolved(config: InferenceConfig) -> ResolvedConfig:
    """The same with a data set, a network and a seed: what ``data`` holds, else digits; its usual network; 0.

    Raises InputError where ``data`` is not a folder.
    """
    dataset = config.dataset or ("digits" if config.data is None else infer_dataset(config.data))
    given = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    named = {"dataset": dataset, "arch": config.arch or DEFAULT_ARCH.get(dataset, "resnet20"), "seed": config.seed or 0}
    return ResolvedConfig(**given | named)


def load_images(config: ResolvedConfig) -> tuple[ImageDataset, ImageDataset, str]:
    """(test images, calibration images, the split these come from, or the folder).

    Calibration has ``calibration_data`` where it is given, else the training split, where there is one. Raises
    InputError for images that aren't there.
    """
    preprocessing = default_preprocessing(config.arch, config.dataset, config.image_size)

    def load(split: str) -> ImageDataset:
        name, skip = config.dataset, config.skip_corrupt
        return load_dataset(name, config.data, split=split, preprocessing=preprocessing, skip_corrupt=skip)

    test = load("test")
    if config.calibration_data is None:
        source = "train" if has_split(config.dataset, config.data, "train") else "test"
        return test, load(source), source
    size = test[0][0].shape[-1]
    alike = test.preprocessing if test.preprocessing.crop else replace(test.preprocessing, resize=size, crop=size)
    folder = user_path(config.calibration_data)
    return test, load_unlabelled(folder, alike, skip_corrupt=config.skip_corrupt), str(folder)


def load_model(config: ResolvedConfig, images: ImageDataset) -> nn.Module:
    """The network with trained weights. Raises InputError where there are none: random ones would mean nothing."""
    checkpoint = weights_file(config)
    return create_model(
        config.arch,
        num_classes=images.num_classes,
        in_channels=images.in_channels,
        checkpoint=checkpoint,
        pretrained=checkpoint is None,
    )


def weights_file(config: ResolvedConfig) -> Path | None:
    """The file of the network's trained weights, given or bundled; None: torchvision's.

    Raises InputError where there are none, and where the file isn't there.
    """
    arch, checkpoint = config.arch, config.checkpoint
    if checkpoint is not None and not user_path(checkpoint).is_file():
        raise InputError(f"checkpoint {checkpoint} is not a file: check the path")
    if checkpoint is None and (config.dataset, arch) in BUNDLED:
        checkpoint = bundled_checkpoint(BUNDLED[config.dataset, arch])
    published = config.dataset == "imagenet" and arch in torchvision.models.list_models(module=torchvision.models)
    if checkpoint is None and not published:
        raise InputError(
            f"no weights for {arch} on {config.dataset}: give --checkpoint FILE (scripts/train.py makes one)"
        )
    return checkpoint

"""Models by name: the CIFAR ResNets, an MLP and every torchvision classification model, and how each wants its images.
What a network looks like inside is cifar_resnet.py's, mlp.py's and torchvision's; reading weights is checkpoint.py's.
"""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torchvision.models
from torch import nn
from torchvision.models import WeightsEnum
from torchvision.transforms._presets import ImageClassification

from pytorch_quantizer.data import DATASETS, Preprocessing
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.models.checkpoint import load_checkpoint, load_state
from pytorch_quantizer.models.cifar_resnet import DEPTHS, CifarResNet
from pytorch_quantizer.models.mlp import HIDDEN, MLP, SIDE

IMAGENET_CLASSES = 1000
STANDARD = Preprocessing(resize=256, crop=224)
# The weights that the papers report; where a model has none, the ones for the same 224-pixel input, then the default.
PREFERRED_WEIGHTS = ("IMAGENET1K_V1", "IMAGENET1K_SWAG_LINEAR_V1", "DEFAULT")
PHOTOGRAPHS = ("imagenet", "folder")
WITH_AUXILIARY = ("googlenet", "inception_v3")


def list_models() -> list[str]:
    """List the names that create_model knows: CIFAR ResNets, the MLP, then torchvision's classification models."""
    return [*DEPTHS, *HIDDEN, *_torchvision_models()]


def create_model(
    arch: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build a model in eval mode, with random weights unless `checkpoint` or `pretrained` says otherwise.

    `num_classes` None: 10 for networks for small images, 1,000 for torchvision's. `pretrained` downloads their weights
    (PREFERRED_WEIGHTS) through torch hub's cache. GoogLeNet and Inception come without auxiliary classifiers.
    Raises InputError for an unknown arch, weights that don't fit or can't be had.
    """
    if checkpoint is not None and pretrained:
        raise InputError("a model takes its weights from a checkpoint or from torchvision (pretrained), not from both")
    if in_channels < 1 or (num_classes is not None and num_classes < 1):
        raise InputError(f"a model needs channels and classes, got {in_channels} and {num_classes}")
    _known(arch)
    if pretrained:
        _check_published(arch, num_classes, in_channels)
    small_classes = 10 if num_classes is None else num_classes
    if arch in DEPTHS:
        model: nn.Module = CifarResNet(DEPTHS[arch], small_classes, in_channels)
    elif arch in HIDDEN:
        model = MLP(HIDDEN[arch], small_classes, in_channels)
    else:
        published = pretrained or checkpoint is not None
        model = _torchvision_model(arch, num_classes, in_channels, published=published)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    if pretrained:
        _load_published(model, arch)
    return model.eval()


def default_preprocessing(arch: str, dataset_name: str, image_size: int | None = None) -> Preprocessing:
    """How `arch` wants the images of a data set; `image_size`: brought to a square of so many pixels instead.

    ImageNet and folders: resize, crop and interpolation of the weights that `pretrained` would load. CIFAR ResNets
    read small images at their own size (photographs at 32 pixels); torchvision's models get small images enlarged, the
    MLP all at 28 pixels. Raises InputError for an unknown arch or data set, and for another size of the MLP's images.
    """
    _known(arch)
    if dataset_name not in DATASETS:
        raise InputError(f"unknown data set {dataset_name!r}: choose one of {', '.join(DATASETS)}")
    if arch in HIDDEN and image_size not in (None, SIDE):
        raise InputError(f"{arch} reads images of {SIDE} pixels, asked for {image_size}: leave the size out")
    usual = _usual_preprocessing(arch, dataset_name)
    return usual if image_size is None else replace(usual, resize=image_size, crop=image_size)


def _usual_preprocessing(arch: str, dataset_name: str) -> Preprocessing:
    if dataset_name in PHOTOGRAPHS and arch in (*DEPTHS, *HIDDEN):
        side = SIDE if arch in HIDDEN else 32
        return Preprocessing(resize=side, crop=side)
    if dataset_name in PHOTOGRAPHS:
        return _published_preprocessing(arch)
    own: Preprocessing = DATASETS[dataset_name].PREPROCESSING
    if arch in DEPTHS:
        return own
    size = SIDE if arch in HIDDEN else _published_preprocessing(arch).crop
    return Preprocessing(resize=size, crop=size, mean=own.mean, std=own.std)


def _torchvision_models() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _known(arch: str) -> str:
    names = list_models()
    if arch not in names:
        close = difflib.get_close_matches(arch, names, n=3)
        hint = (
            f"did you mean {' or '.join(close)}?" if close else f"choose one of {', '.join(DEPTHS)}, or torchvision's"
        )
        raise InputError(f"unknown arch {arch!r}: {hint}")
    return arch


def _check_published(arch: str, num_classes: int | None, in_channels: int) -> None:
    if arch in (*DEPTHS, *HIDDEN):
        raise InputError(f"torchvision has no weights for {arch}: pass --checkpoint FILE")
    if num_classes not in (None, IMAGENET_CLASSES) or in_channels != 3:
        raise InputError(
            f"torchvision's weights for {arch} read 3 channels and know 1,000 classes, "
            f"asked for {in_channels} and {num_classes}: pass --checkpoint FILE"
        )


def _torchvision_model(arch: str, num_classes: int | None, in_channels: int, *, published: bool) -> nn.Module:
    """Build the model; `published`: its weights will come from a file or a download, not from an initialisation."""
    classes = IMAGENET_CLASSES if num_classes is None else num_classes
    options: dict[str, Any] = {}
    if arch in WITH_AUXILIARY:
        # The published weights expect inputs rescaled from ImageNet's mean and deviation to [-1, 1].
        rescaled = published and classes == IMAGENET_CLASSES and in_channels == 3
        options = {"aux_logits": False, "transform_input": rescaled, "init_weights": not published}
    model = torchvision.models.get_model(arch, weights=None, num_classes=classes, **options)
    if in_channels != 3:
        _replace_first_conv(model, in_channels)
    return model


def _replace_first_conv(model: nn.Module, in_channels: int) -> None:
    """Let a model built for 3 channels read `in_channels`; everything else of its first convolution stays."""
    name, conv = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, attribute = name.rpartition(".")
    names = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    options = {name: getattr(conv, name) for name in names}
    replacement = nn.Conv2d(in_channels, bias=conv.bias is not None, **options)
    setattr(model.get_submodule(parent), attribute, replacement)


def _load_published(model: nn.Module, arch: str) -> None:
    weights = _published_weights(arch)
    try:
        state = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise InputError(
            f"can't download torchvision's weights for {arch} ({error}): fetch {weights.url} and pass --checkpoint FILE"
        ) from error
    load_state(model, state, source=str(weights))


def _published_weights(arch: str) -> WeightsEnum:
    weights = torchvision.models.get_model_weights(arch)
    return next(weights[name] for name in PREFERRED_WEIGHTS if name in weights.__members__)


def _published_preprocessing(arch: str) -> Preprocessing:
    preset = _published_weights(arch).transforms()
    if not isinstance(preset, ImageClassification):
        return STANDARD
    return Preprocessing(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )

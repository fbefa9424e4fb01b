"""Write a quantized network as files to take along: packed, and ONNX that runs in integers. Nothing is evaluated.

  pq export --recipe w8a8 --save digits.safetensors --export-onnx digits.onnx
      the embedded job's network: handwritten digits, the bundled ResNet-20

  pq export --data DIR --arch resnet50 --recipe w8a8 --export-onnx resnet50.onnx
      DIR holds ImageNet's val/<wnid>/*.JPEG, from which ranges are chosen, as `pq run` does

  pq export --packed digits.safetensors --shape 1,8,8 --export-onnx digits.onnx
      a packed checkpoint that is there, of `--save`, `pq train` or pq.save; --shape: that of an image, or --dataset
      and --data, whose images have it

ONNX Runtime runs the ONNX file once and tells how fast, and what of it in integers (extra [onnx]). Flags as `pq run`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from torch import Tensor

from pytorch_quantizer.command_line import add_flags, command_parser, from_flags
from pytorch_quantizer.commands.recipe_flags import add_recipe_flags, recipe_from, refuse_recipe
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.inference_config import InferenceConfig
from pytorch_quantizer.experiments.model_files import ModelFiles
from pytorch_quantizer.experiments.quantizing import quantize_network, some_images
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.export.checkpoint import load
from pytorch_quantizer.graph.quantized_model import QuantizedModel

TIMED = 32  # images of the larger batch, the other is one


@dataclass(frozen=True)
class Config(InferenceConfig):
    """InferenceConfig without what is evaluated and reported."""

    limit: int | None = None  # no flag
    output: Path | None = None  # no flag


@dataclass(frozen=True)
class Packed:
    """A network that is quantized already; each field's ``metadata["help"]`` is its flag's help."""

    packed: Path | None = field(default=None, metadata={"help": "a packed checkpoint to export, in place of a recipe"})
    shape: str | None = field(
        default=None, metadata={"help": "of an image that it reads, as 3,224,224; default: of the data set's images"}
    )


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, quantize or load, write the files, say what they hold."""
    flags = vars(parser().parse_args(arguments))
    config, files, packed = from_flags(Config, flags), from_flags(ModelFiles, flags), from_flags(Packed, flags)
    if files.save is None and files.export_onnx is None:
        raise InputError("nothing to write: give --save FILE, --export-onnx FILE or both")
    files.check()
    if packed.packed is None:
        model, images = quantized_network(config, flags, packed, files)
    else:
        refuse_recipe(flags)
        model = load(packed.packed)
        images = some_images(config) if packed.shape is None else random_images(packed.shape)
    if flags["summary"]:
        print(model.summary(), end="\n\n")
    print(*files.write(model, images[:TIMED]), sep="\n")


def parser() -> jsonargparse.ArgumentParser:
    """The flags: the files, then what to quantize, then the recipe and its fields."""
    made = command_parser("export", __doc__)
    made.add_argument(
        "--summary", action="store_true", help="print every tensor: its bits and range, or why it is float"
    )
    add_flags(made, ModelFiles, "the quantized model as files")
    add_flags(made, Packed, "a model that is quantized")
    add_flags(made, Config, "what to quantize")
    add_flags(made, Resources, "what learning may take")
    add_recipe_flags(made)
    return made


def quantized_network(
    config: Config, flags: dict[str, Any], packed: Packed, files: ModelFiles
) -> tuple[QuantizedModel, Tensor]:
    """The model that the flags describe, and images that it has seen."""
    if packed.shape is not None:
        raise InputError("--shape is of what --packed FILE reads: give both, or neither")
    recipe, resources = recipe_from(flags), from_flags(Resources, flags)
    files.check(recipe)
    resources.check(recipe)
    networks = quantize_network(config, recipe, resources)
    return networks.quantized, networks.images


def random_images(shape: str) -> Tensor:
    """Standard normal images of a shape such as 3,224,224. Raises InputError for what is no shape."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", shape.replace(" ", "")):
        raise InputError(f"--shape must be an image's, as 3,224,224, got {shape!r}")
    sizes = [int(size) for size in shape.split(",")]
    return torch.randn(TIMED, *sizes, generator=torch.Generator().manual_seed(0))

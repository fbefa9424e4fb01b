"""The tables of earlier projects: the rows of each, what is timed, and the figures that they published.
Measuring is reproduce_measure.py's, what people read reproduce_text.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytorch_quantizer.quantization.recipe import Recipe

PYTORCH, ONNX_RUNTIME = "PyTorch", "ONNX Runtime"

INT16 = Recipe(name="w16a16", weights="int16", activations="int16")
# w4a4_statistical without wide_residual, which puts a convolution's result on two grids: ONNX Runtime leaves it float.
INT4_ALONE = Recipe(
    name="w4a4_statistical --wide-residual false",
    weights="int4",
    activations="int4",
    clip="mse",
    weight_clip="output_mse",
    activation_correction="both",
)
# Of twenty variants of w2a4_statistical one of the three best on 2,000 training images that no range came from: 76 %
# of them, with symmetric weights 66 %, without weight correction 72 %.
INT2 = Recipe(
    name="w2a2_statistical",
    weights="int2",
    activations="int2",
    clip="mse",
    weight_clip="output_mse",
    weight_symmetric=False,
    weight_narrow=False,
    wide_residual=True,
    weight_correction="both",
    activation_correction="both",
)


@dataclass(frozen=True)
class Row:
    """A line of a table: a network as it is deployed.

    recipe: a shipped one's name, a Recipe, or None for the float network. runtime: what computes it. fused: whether
    batch norms and ReLUs go into the convolutions before them (reproduce_unfused.py). epochs: of training with
    quantization, on the training images, from the float network's weights (trained_cell.py); 0: none. published:
    figures of others by column, rates as fractions of 1, sizes in bytes, times in milliseconds.
    """

    name: str
    recipe: str | Recipe | None = None
    runtime: str = PYTORCH
    fused: bool = True
    epochs: int = 0
    published: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """What is timed: a forward pass over `images` test images (None: all that are evaluated), `batch` at a time.

    size: pixels of the square that they are brought to; None: as they are evaluated.
    """

    name: str
    batch: int
    images: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Table:
    """A table. name: of its files. columns: of the rates, those that people are shown.

    weights: the file with published weights in the data set's folder; None: scripts/configs/NAME.yaml trains them.
    """

    name: str
    title: str
    dataset: str
    arch: str
    rows: tuple[Row, ...]
    timings: tuple[Timing, ...]
    columns: tuple[str, ...] = ("top1",)
    image_size: int | None = None
    weights: str | None = None
    note: str = ""


FEW_BITS = "At 4 and 2 bits the first and the last layer and the shortcuts have 8 unless the row says otherwise. "
WHOLE_SET = Timing("test set", batch=128)
RATES = ("top1", "precision", "recall", "f1")


def _rates(top1: float, precision: float, f1: float) -> dict[str, float]:
    """As published: the macro recall equals the accuracy where every class has as many images."""
    return {"top1": top1, "precision": precision, "recall": top1, "f1": f1}


RESNET20_BITS = Table(
    name="resnet20_cifar10_bits",
    title="ResNet-20 on CIFAR-10, weights and activations of as many bits",
    dataset="cifar10",
    arch="resnet20",
    weights="resnet20.th",
    columns=RATES,
    timings=(WHOLE_SET,),
    note=FEW_BITS,
    rows=(
        Row("float32"),
        Row("float32, ONNX Runtime", runtime=ONNX_RUNTIME),
        Row("int16", INT16, published=_rates(0.9153, 0.9166, 0.9156)),
        Row("int8", "w8a8", ONNX_RUNTIME, published=_rates(0.9156, 0.9167, 0.9159)),
        Row("int4", "w4a4_statistical", ONNX_RUNTIME, published=_rates(0.8600, 0.8695, 0.8616)),
        Row("int2", INT2, ONNX_RUNTIME, published=_rates(0.1303, 0.1396, 0.1176)),
    ),
)


def _measures(top1: float, seconds: float | None = None, megabytes: float | None = None) -> dict[str, float]:
    found = {"top1": top1, "test set": seconds and 1e3 * seconds, "file": megabytes and 1e6 * megabytes}
    return {name: value for name, value in found.items() if value is not None}


RESNET20_INT8 = Table(
    name="resnet20_cifar10_int8",
    title="ResNet-20 on CIFAR-10, int8 fused and not fused, int4, int2",
    dataset="cifar10",
    arch="resnet20",
    weights="resnet20.th",
    timings=(WHOLE_SET,),
    rows=(
        Row("float32", published=_measures(0.921, 39.5, 1.596)),
        Row("float32, ONNX Runtime", runtime=ONNX_RUNTIME),
        Row("int8, not fused", "w8a8", ONNX_RUNTIME, fused=False, published=_measures(0.881, 22.9, 0.485)),
        Row("int8, fused", "w8a8", ONNX_RUNTIME, published=_measures(0.913, 15.6, 0.430)),
        Row("int8, fused, its own ranges", "w8a8_aciq", ONNX_RUNTIME, published=_measures(0.914, 16.8, 0.425)),
        Row("int4", "w4a4_statistical", ONNX_RUNTIME, published=_measures(0.296)),
        Row("int4, shortcuts too", INT4_ALONE, ONNX_RUNTIME),
        Row("int2", INT2, ONNX_RUNTIME, published=_measures(0.111)),
    ),
    note=FEW_BITS
    + (
        "Not fused: convolution, batch norm (as the depthwise 1x1 convolution that it is) and ReLU (after an average "
        "over windows of 1x1, which requantizes) are three quantized steps, each with a grid of its own. 'Its own "
        "ranges': min-max in the row before, here from the Laplace prior; published: that project's own int8 model."
    ),
)


def _network(top1: float, milliseconds: float, megabytes: float) -> dict[str, float]:
    return {"top1": top1, "224 x 224": milliseconds, "file": 1e6 * megabytes}


RESNET18_CIFAR10 = Table(
    name="resnet18_cifar10",
    title="ResNet-18 (torchvision's) on CIFAR-10 at 32 x 32",
    dataset="cifar10",
    arch="resnet18",
    image_size=32,
    timings=(Timing("32 x 32", batch=1, images=1), Timing("224 x 224", batch=1, images=1, size=224)),
    rows=(
        Row("float32", published=_network(0.8136, 8.15, 42.8)),
        Row("float32, ONNX Runtime", runtime=ONNX_RUNTIME),
        Row("dynamic int8", "dynamic_w8", ONNX_RUNTIME, published=_network(0.8136, 8.13, 42.8)),
        Row("dynamic int8, convolutions too", "dynamic_w8_convolutions", ONNX_RUNTIME),
        Row("static int8", "w8a8", ONNX_RUNTIME, published=_network(0.7814, 2.42, 10.8)),
        Row("int8, trained with it", "w8a8", ONNX_RUNTIME, epochs=4, published=_network(0.7885, 2.45, 10.8)),
    ),
    note=(
        "Published: the same network on another data set and machine. Accuracy at 32 x 32, for which it was trained on "
        "10,000 images; at 224 x 224 only the time is measured. Dynamic: of linear layers, as torch's "
        "quantize_dynamic has it; ranges are those of each batch, for the accuracy of 128 images."
    ),
)
RESNET18_MNIST = Table(
    name="resnet18_mnist",
    title="ResNet-18 (torchvision's, one input channel) on MNIST",
    dataset="mnist",
    arch="resnet18",
    image_size=28,
    timings=(Timing("28 x 28", batch=1, images=1),),
    rows=(
        Row("float32"),
        Row("float32, ONNX Runtime", runtime=ONNX_RUNTIME),
        Row("static int8", "w8a8", ONNX_RUNTIME),
    ),
)

"""A gain and a shift per channel folded into a quantized layer: into its weight's scale and its bias, so that they cost
nothing at run time. What they are worth is decided in calibration/.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pytorch_quantizer.graph.operations import TRANSPOSED, Layer
from pytorch_quantizer.quantization.bias_correction import Affine
from pytorch_quantizer.quantization.qtypes import BiasQuantizer, Quantizer


def ensure_biases(layers: Iterable[Layer]) -> None:
    """Give each layer that has none a bias of zeros, for shifts to go into."""
    for layer in layers:
        if layer.bias is None:
            outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            layer.bias = nn.Parameter(layer.weight.new_zeros(outputs), requires_grad=layer.weight.requires_grad)


def takes_gain(layer: Layer) -> bool:
    """Whether each output channel of a layer has a weight scale of its own, or its weight is in float."""
    quantizer = getattr(layer, "weight_quantizer", None)
    if not isinstance(quantizer, Quantizer):
        return True
    return quantizer.takes_gain and (not isinstance(layer, TRANSPOSED) or layer.groups == 1)


def scale_of_outputs(layer: Layer, quantizer: Quantizer) -> Tensor:
    """A weight's scale for each output channel, or []; a grouped transposed convolution's groups share theirs."""
    scale: Tensor = quantizer.scale
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return scale if scale.dim() == 0 else scale.repeat(outputs // scale.numel())


@torch.no_grad()
def apply_affine(layer: Layer, affine: Affine) -> None:
    """Make a quantized layer compute gain·y + shift, in place: the codes stay, scale and bias change.

    affine: [C] of the layer's outputs. The bias is put on the grid of the new sums. A gain other than 1 needs
    ``takes_gain``.
    """
    gain = affine.gain.to(layer.weight.device)
    bias = _bias_under(layer, affine)
    weight_quantizer = getattr(layer, "weight_quantizer", None)
    if not bool(torch.all(gain == 1)):
        _multiply_weight(layer, weight_quantizer, gain)
    bias_quantizer = getattr(layer, "bias_quantizer", None)
    if bias_quantizer is not None and weight_quantizer is not None:
        bias_quantizer.rescale(scale_of_outputs(layer, weight_quantizer))
    assert layer.bias is not None
    layer.bias.copy_(bias)


@torch.no_grad()
def as_applied(layer: Layer, affine: Affine) -> Affine:
    """What a layer computes after ``apply_affine``, float64: the shift is the one that its rounded bias leaves."""
    assert layer.bias is not None
    gain = affine.gain.to(layer.weight.device).double()
    return Affine(gain, _bias_under(layer, affine) - gain * layer.bias.double())


@torch.no_grad()
def shift_weight(layer: Layer, affine: Affine) -> None:
    """Make a layer's weight gain·w + shift per output channel, in place, off its grid: only to simulate.

    affine: [C] of the weight's channels along the quantizer's axis; a grid per tensor takes them too. The gain goes
    into the scale where each channel has one. What is off the grid a file must hold beside the codes: the layer's
    buffers weight_shift, and weight_gain where no scale took it, float32 [C].
    """
    gain, shift = (part.to(layer.weight.device).double() for part in affine)
    if isinstance(getattr(layer, "weight_quantizer", None), Quantizer) and takes_gain(layer):
        bias = 0.0 if layer.bias is None else layer.bias.double()
        apply_affine(layer, Affine(gain, bias * (1 - gain)))  # the gain is the weight's alone
    else:
        layer.weight.copy_(layer.weight.double() * _along_weight(layer, gain))
        layer.register_buffer("weight_gain", gain.to(layer.weight.dtype))
    offset = shift.to(layer.weight.dtype)
    layer.register_buffer("weight_shift", offset)
    layer.weight.add_(_along_weight(layer, offset))


def _bias_under(layer: Layer, affine: Affine) -> Tensor:
    """float64 [C]: the bias that ``apply_affine`` gives a layer, on the grid of its new sums where it has one."""
    gain, shift = (part.to(layer.weight.device).double() for part in affine)
    assert layer.bias is not None
    bias = layer.bias.double() * gain + shift
    weight_quantizer, bias_quantizer = (getattr(layer, f"{name}_quantizer", None) for name in ("weight", "bias"))
    if bias_quantizer is None or weight_quantizer is None:
        return bias
    scale = scale_of_outputs(layer, weight_quantizer)
    grid = BiasQuantizer(bias_quantizer.input_scale, (scale.double() * gain).to(scale.dtype))
    rounded: Tensor = grid(bias)
    return rounded


def _multiply_weight(layer: Layer, quantizer: Quantizer | None, gain: Tensor) -> None:
    """gain·w: the codes stay and the scale changes; so does what is off the grid (shift_weight)."""
    if quantizer is None:
        layer.weight.copy_(layer.weight.double() * _along_weight(layer, gain.double()))
        return
    shift = getattr(layer, "weight_shift", None)
    codes = quantizer.quantize(layer.weight if shift is None else layer.weight - _along_weight(layer, shift))
    layer.weight.copy_(quantizer.multiply(gain).dequantize(codes))
    if shift is not None:
        shift.mul_(gain)
        layer.weight.add_(_along_weight(layer, shift))


def _along_weight(layer: Layer, values: Tensor) -> Tensor:
    """[C] shaped to meet the layer's weight along its quantizer's axis."""
    axis = int(isinstance(layer, TRANSPOSED))
    return values.reshape([-1 if dim == axis else 1 for dim in range(layer.weight.dim())])

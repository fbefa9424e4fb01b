"""A simulated model made trainable, its grids, biases and on request its weights being parameters, and back again.
What they are trained for, and by which optimizer, is tune.py's and qat.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from pytorch_quantizer import ops
from pytorch_quantizer.calibration.learned_steps import LearnedStep, obstacle
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.biases import BIAS_ROOM
from pytorch_quantizer.graph.fuse import copy_of
from pytorch_quantizer.graph.operations import TRANSPOSED, Layer, layer_nodes, module_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.graph.rescale import scale_of_outputs, takes_gain
from pytorch_quantizer.graph.ties import input_quantizer, input_scale
from pytorch_quantizer.layouts import trained_formats
from pytorch_quantizer.quantization.bias_correction import Moments
from pytorch_quantizer.quantization.qparams import MIN_SCALE
from pytorch_quantizer.quantization.qtypes import BiasQuantizer, IntQuantizer, Quantizer

GRIDS = ("lsq_plus", "lsq", "fixed")
WITHIN = 0.49  # of a step: how far from its code a weight starts, at most, so that rounding gives the code back


def check_grids(grids: str, *, norms: bool, prefix: str = "") -> None:
    """Raise InputError unless ``grids`` is one of GRIDS and goes with norms or without; prefix: of the settings' names.

    A norm ends in its layer's scales, which fixed leaves alone.
    """
    if grids not in GRIDS:
        raise InputError(f"{prefix}grids must be one of {', '.join(GRIDS)}, got {grids!r}")
    if grids == "fixed" and norms:
        raise InputError(
            f"{prefix}grids fixed can't keep norms, which are folded into weights' scales: set {prefix}norms to false"
        )


def make_trainable(
    model: QuantizedModel, originals: fx.GraphModule | None = None, *, norms: bool = False, grids: str = "lsq_plus"
) -> fx.GraphModule:
    """A copy of a simulated model that computes the same, and in which parameters that require gradients are to learn.

    Scales of activations on uniform grids, zero points that aren't 0 by nature, weights' scales and biases learn.
    originals: the folded float network: weights on uniform grids learn too, from where they were before rounding.
    norms: each layer that a batch norm was folded into gets one again, which begins as the identity. grids: lsq keeps
    zero points; fixed keeps scales, too, and gradients of what lies on a grid's range pass straight through. Other
    number types pass all gradients. ``write_back`` puts what was learned into a QuantizedModel. Raises InputError as
    ``check_grids``.
    """
    check_grids(grids, norms=norms)
    learned = fx.GraphModule(deepcopy(model), copy_of(model.graph))
    for parameter in learned.parameters():
        parameter.requires_grad_(False)
    known = {node.name: node.meta.get("normal") for node in (originals.graph.nodes if originals else ())}
    for node, layer in list(layer_nodes(learned)):
        if not isinstance(module_of(learned, node), LearnedLayer):
            original = None if originals is None else originals.get_parameter(f"{node.target}.weight")
            moments = known.get(node.name) if norms and takes_gain(layer) else None
            _replace(learned, node, LearnedLayer(layer, original, moments))
    for node in learned.graph.nodes:
        quantizer = module_of(learned, node)
        if isinstance(quantizer, IntQuantizer) and obstacle(quantizer) is None:
            offset = grids == "lsq_plus" and quantizer.domain.support != "rectified"
            _replace(learned, node, LearnedStep(quantizer, zero_point=offset))
        elif isinstance(quantizer, Quantizer):
            _replace(learned, node, StraightThrough(quantizer))
    if grids == "fixed":
        _freeze_scales(learned)
    _let_biases_follow(learned, model)
    return learned.eval()


@torch.no_grad()
def write_back(learned: fx.GraphModule, model: QuantizedModel) -> None:
    """Put what a trainable copy of a model has learned into the model, in place: codes, scales, zero points, biases.

    What it computes then is what the copy computes in eval mode.
    """
    for node in model.graph.nodes:
        step, quantizer = module_of(learned, node), module_of(model, node)
        if isinstance(step, LearnedStep) and isinstance(quantizer, IntQuantizer):
            quantizer.qparams = step.harden().qparams
    done: set[str] = set()
    for node, layer in layer_nodes(model):
        entry = module_of(learned, node)
        if isinstance(entry, LearnedLayer) and str(node.target) not in done:
            entry.harden(layer, input_scale(model, node))
            done.add(str(node.target))


def batch_norms(learned: fx.GraphModule) -> Iterator[Norm]:
    """The batch norms that learn, to be put in training mode or in eval mode."""
    return (module for module in learned.modules() if isinstance(module, Norm))


class StraightThrough(nn.Module):
    """A quantizer that stays as it is and hands gradients on unchanged."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        """What the quantizer gives."""
        with torch.no_grad():
            change = self.quantizer(x, **options) - x
        return x + change


class Norm(nn.Module):
    """A batch norm over channels (dimension 1) with a gain of |weight|, so that it folds into scales.

    It begins as the identity on tensors of the moments given: mean β and deviation |γ| of the norm that was folded.
    """

    running_mean: Tensor
    running_var: Tensor
    EPSILON = 1e-5
    MOMENTUM = 0.1

    def __init__(self, moments: Moments, like: Tensor) -> None:
        super().__init__()
        mean, variance = moments.mean.to(like), moments.deviation.to(like).square()
        self.register_buffer("running_mean", mean.clone())
        self.register_buffer("running_var", variance)
        self.weight = nn.Parameter((variance + self.EPSILON).sqrt())
        self.bias = nn.Parameter(mean.clone())

    def forward(self, x: Tensor, change: Tensor | float = 0.0) -> Tensor:
        """[N, C, …] normalised by the batch in training mode, by what was seen before in eval mode, plus ``change``."""
        moments = self.running_mean, self.running_var
        affine = self.weight.abs(), self.bias + change
        return F.batch_norm(x, *moments, *affine, self.training, self.MOMENTUM, self.EPSILON)

    def as_affine(self) -> tuple[Tensor, Tensor]:
        """(gain, shift), float64 [C]: what it does in eval mode."""
        gain = self.weight.double().abs() * (self.running_var.double() + self.EPSILON).rsqrt()
        return gain, self.bias.double() - gain * self.running_mean.double()


class LearnedLayer(nn.Module):
    """A layer that computes norm(layer(x)) with its weight's scale, its bias and on request its codes as parameters.

    log_gain: of what the weight's scale was, [C] or []; None where no scale takes one. latent: the weight in steps of
    the starting scale s₀, [weight's shape]; it runs as s₀·s·(clamp(round(latent / s) + z) − z), which is LSQ with
    s = exp(log_gain). Where it is None the codes stay, and the gain multiplies the weight. The bias, with the norm in
    it, runs on the grid of the layer's sums where it has one, ``reads`` being what put its input on a grid.
    """

    reads: tuple[LearnedStep, ...] = ()  # in a tuple, so that it is no submodule and its parameters aren't listed twice

    def __init__(self, layer: Layer, original: Tensor | None, moments: Moments | None) -> None:
        super().__init__()
        self.layer = layer
        quantizer = getattr(layer, "weight_quantizer", None)
        self.log_gain = _log_gain(layer, quantizer)
        self.latent = None
        if isinstance(quantizer, IntQuantizer) and self.log_gain is not None and original is not None:
            self.latent = nn.Parameter(_latent(layer, quantizer, original))
        self.norm = None if moments is None else Norm(moments, layer.weight)
        self.bias = None
        if layer.bias is not None:
            self.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=moments is None)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes."""
        change = self._rounding_of_bias()
        bias: Tensor | None = self.bias
        if bias is not None and self.norm is None:
            bias = bias + change
        x, weight = trained_formats(self.layer, x, self.weight())
        tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
        y: Tensor = functional_call(self.layer, tensors, (x,))
        return y if self.norm is None else self.norm(y, change)

    def weight(self) -> Tensor:
        """The weight that runs, on its grid."""
        if self.log_gain is None:
            return self.layer.weight
        gain = self.log_gain.exp()
        if self.latent is None:
            return self.layer.weight * _along(self.layer, gain)
        quantizer: Any = self.layer.weight_quantizer
        limits = quantizer.zero_point.float(), quantizer.qmin, quantizer.qmax
        weight = ops.learnable_fake_quantize(self.latent, gain, *limits, axis=quantizer.axis)
        return weight * _along(self.layer, quantizer.scale)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The codes that the weight has now."""
        quantizer: Any = self.layer.weight_quantizer
        if self.latent is None or self.log_gain is None:
            chosen: Tensor = quantizer.quantize(self.layer.weight)
            return chosen
        limits = quantizer.zero_point, quantizer.qmin, quantizer.qmax
        return ops.quantize(self.latent, self.log_gain.exp(), *limits, axis=quantizer.axis)

    @torch.no_grad()
    def harden(self, layer: Layer, scale: Tensor | None) -> None:
        """Give the layer that this one came from what was learned; scale: of its input's grid, where there is one."""
        quantizer: Any = getattr(layer, "weight_quantizer", None)
        on_grid: Any = getattr(layer, "bias_quantizer", None)
        gain, bias = self._folded()
        if on_grid is not None and scale is not None:
            on_grid.input_scale = scale
        if self.log_gain is not None:
            codes = self.codes()
            quantizer.multiply(self.log_gain.double().exp() * gain)
            if on_grid is not None:
                _leave_room(quantizer, bias, on_grid.input_scale)
            layer.weight.copy_(quantizer.dequantize(codes))
        if bias is not None and layer.bias is not None:
            if on_grid is not None:
                bias = on_grid.rescale(scale_of_outputs(layer, quantizer))(bias)
            layer.bias.copy_(bias)

    @torch.no_grad()
    def _rounding_of_bias(self) -> Tensor | float:
        """[C]: what putting the bias, with the norm in it, on the int32 grid of the layer's sums will add to it."""
        on_grid: Any = getattr(self.layer, "bias_quantizer", None)
        gain, bias = self._folded()
        if on_grid is None or bias is None:
            return 0.0
        quantizer: Any = self.layer.weight_quantizer
        scale: Tensor = quantizer.scale
        if self.log_gain is not None:  # rounded as ``harden`` rounds it
            scale = (scale.double() * (self.log_gain.double().exp() * gain)).to(scale.dtype)
        read = self.reads[0].grid()[0] if self.reads else on_grid.input_scale
        on_new_grid: Tensor = BiasQuantizer(read, scale.repeat(bias.numel() // max(scale.numel(), 1)))(bias)
        return (on_new_grid - bias).to(self.layer.weight.dtype)

    def _folded(self) -> tuple[Tensor | float, Tensor | None]:
        """(what the norm multiplies by, the bias with the norm in it), float64."""
        bias = None if self.bias is None else self.bias.double()
        if self.norm is None:
            return 1.0, bias
        gain, shift = self.norm.as_affine()
        return gain, shift if bias is None else gain * bias + shift


def _replace(graph: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    path, _, name = str(node.target).rpartition(".")
    setattr(graph.get_submodule(path), name, module)


def _freeze_scales(learned: fx.GraphModule) -> None:
    """Let neither activations' scales nor weights' learn."""
    for module in learned.modules():
        scale = module.growth if isinstance(module, LearnedStep) else getattr(module, "log_gain", None)
        if isinstance(scale, nn.Parameter):
            scale.requires_grad_(False)


def _let_biases_follow(learned: fx.GraphModule, model: QuantizedModel) -> None:
    """Tell each layer whose scale its biases' grid depends on."""
    for node, _ in layer_nodes(model):
        source, layer = input_quantizer(model, node), module_of(learned, node)
        step = None if source is None else module_of(learned, source)
        if isinstance(layer, LearnedLayer) and isinstance(step, LearnedStep):
            layer.reads = (step,)


def _log_gain(layer: Layer, quantizer: Any) -> nn.Parameter | None:
    """Zeros of the shape of a weight's scale, None where it is in float, off its grid, or has no scale to multiply."""
    if not isinstance(quantizer, Quantizer) or hasattr(layer, "weight_shift"):
        return None
    if quantizer.takes_gain:
        return nn.Parameter(layer.weight.new_zeros(layer.weight.shape[_axis(layer)]))
    return nn.Parameter(torch.zeros_like(quantizer.scale)) if isinstance(quantizer, IntQuantizer) else None


def _latent(layer: Layer, quantizer: IntQuantizer, original: Tensor) -> Tensor:
    """The float weight in steps of the scale, moved to where it rounds to the code it has, whoever chose that."""
    steps = original.detach() / _along(layer, quantizer.scale)
    offsets = (layer.weight.detach() / _along(layer, quantizer.scale)).round()  # q − z
    zero = _along(layer, quantizer.zero_point)
    low, high = offsets - WITHIN, offsets + WITHIN
    low = torch.where(
        offsets + zero == quantizer.qmin, torch.minimum(steps, low), low
    )  # saturated: as far out as it is
    high = torch.where(offsets + zero == quantizer.qmax, torch.maximum(steps, high), high)
    return steps.clamp(low, high)


def _leave_room(quantizer: Any, bias: Tensor | None, input_scale: Tensor) -> None:
    """Raise a weight's scale where int32 codes could not hold the bias, as biases.make_room does before."""
    floor = torch.full_like(quantizer.scale, MIN_SCALE, dtype=torch.float64)
    if bias is not None:
        needed = bias.abs() / (input_scale.double() * BIAS_ROOM)
        floor = floor.maximum(needed.reshape(-1, floor.numel()).amax(0).reshape(floor.shape))
    quantizer.scale = torch.maximum(quantizer.scale, floor.to(quantizer.scale.dtype))


def _along(layer: Layer, values: Tensor) -> Tensor:
    """[C] or [] shaped to meet the layer's weight along its channels."""
    return values.reshape([-1 if dim == _axis(layer) else 1 for dim in range(layer.weight.dim())])


def _axis(layer: Layer) -> int:
    return int(isinstance(layer, TRANSPOSED))

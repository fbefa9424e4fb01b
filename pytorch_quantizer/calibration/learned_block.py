"""One block of a simulated graph under training: soft weights, biases and steps in the place of hard ones.
How it is trained, and on what, is reconstruct.py's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from pytorch_quantizer.calibration.dropping import Dropping
from pytorch_quantizer.calibration.frontier import run_node
from pytorch_quantizer.calibration.learned_steps import LearnedStep, obstacle
from pytorch_quantizer.calibration.soft_rounding import SoftRoundedWeight
from pytorch_quantizer.graph.blocks import Block
from pytorch_quantizer.graph.branches import quantizer_of
from pytorch_quantizer.graph.operations import Layer, layer_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.layouts import trained_formats
from pytorch_quantizer.quantization.qtypes import IntQuantizer

FINE = 8  # bits of activations from which on a step is as good as calibrated


class SoftLayer(nn.Module):
    """A convolution or linear layer on a soft weight, and its bias as a parameter."""

    def __init__(self, layer: Layer, weight: Tensor, quantizer: IntQuantizer) -> None:
        super().__init__()
        self._layer = (layer,)
        self.weight = SoftRoundedWeight(weight, quantizer)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        self.share: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computes; ``share`` is the weight's of this call, for the regularizer."""
        self.share = self.weight.share()
        x, weight = trained_formats(self._layer[0], x, self.weight(self.share))
        tensors = {"weight": weight}
        if self.bias is not None:
            tensors["bias"] = self.bias
        output: Tensor = functional_call(self._layer[0], tensors, (x,))
        return output

    @torch.no_grad()
    def harden(self) -> None:
        """Give the layer the weight on its grid, and the bias as it is: its grid depends on the steps too."""
        layer = self._layer[0]
        _, weight = self.weight.harden()
        layer.weight.copy_(weight)
        if self.bias is not None and layer.bias is not None:
            layer.bias.copy_(self.bias)


class LearnedBlock(nn.Module):
    """The path of a block as a function of what it reads, with the learnables of its layers and quantizers.

    originals: the float weight of each layer whose rounding is to be learned, by path, under the gains that a
    correction gave it; other layers stay as they are. steps: whether those of activations of fewer than FINE bits are
    learned. Nothing of the model changes before ``harden``.
    """

    def __init__(self, model: QuantizedModel, block: Block, originals: Mapping[str, Tensor], *, steps: bool) -> None:
        super().__init__()
        self.block, self._interpreter = block, fx.Interpreter(model)
        self._soft: dict[fx.Node, SoftLayer] = {}
        self._steps: dict[fx.Node, LearnedStep] = {}
        self._held: set[fx.Node] = set()
        for node in block.path:
            path, layer, quantizer = str(node.target), layer_of(model, node), quantizer_of(model, node)
            if layer is not None and path in originals:
                self._soft[node] = SoftLayer(layer, originals[path], weight_quantizer_of(layer))
            elif quantizer is not None and obstacle(quantizer) is None:
                if steps and quantizer.bits < FINE:
                    self._steps[node] = LearnedStep(quantizer)  # type: ignore[arg-type]
                elif quantizer.bits < FINE:
                    self._held.add(node)
        self.layers = nn.ModuleList(self._soft.values())
        self.steps = nn.ModuleList(self._steps.values())

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return bool(self._soft or self._steps)

    @property
    def soft_layers(self) -> list[SoftLayer]:
        """The layers whose rounding is learned."""
        return list(self._soft.values())

    @property
    def learned_steps(self) -> list[LearnedStep]:
        """The steps that are learned."""
        return list(self._steps.values())

    def forward(self, values: Mapping[fx.Node, Tensor], drops: Dropping) -> Tensor:
        """The output from the values of the block's inputs; ``drops`` lets some through quantizers of few bits."""
        known: dict[fx.Node, Any] = dict(values)
        for node in self.block.path:
            known[node] = self._value(node, known, drops)
        output: Tensor = known[self.block.output]
        return output

    def _value(self, node: fx.Node, known: Mapping[fx.Node, Any], drops: Dropping) -> Any:
        if node in self._soft:
            return self._soft[node](known[node.all_input_nodes[0]])
        if node not in self._steps and node not in self._held:
            return run_node(self._interpreter, node, known)
        x = known[node.all_input_nodes[0]]
        return drops.mixed(x, self._steps[node](x) if node in self._steps else run_node(self._interpreter, node, known))

    def harden(self) -> None:
        """Give layers and quantizers what was learned; biases are to be put on their grids (biases.renew_biases)."""
        for layer in self._soft.values():
            layer.harden()
        for step in self._steps.values():
            step.harden()


def weight_quantizer_of(layer: nn.Module) -> IntQuantizer:
    """The quantizer of a layer's weight."""
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, IntQuantizer)
    return quantizer

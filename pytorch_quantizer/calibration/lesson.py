"""What tuning learns from: images, and the float network's outputs and block outputs on them as what is wanted.
Which parameters learn, and by which optimizer, is tune.py's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from pytorch_quantizer.calibration.activation_cache import Rows
from pytorch_quantizer.graph.blocks import list_blocks
from pytorch_quantizer.graph.fuse import copy_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel


class Selection:
    """Rows of images as batches [n, …] on a device: by their places, or all of them in parts."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self.rows, self.device = rows, device

    def __len__(self) -> int:
        return self.rows.written

    def __getitem__(self, places: Tensor) -> Tensor:
        return self.rows.read(places).contiguous().to(self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """All, so many at a time."""
        return (self[places] for places in torch.arange(len(self)).split(size))


class Lesson:
    """The distance of a simulated network's outputs, and of its blocks' outputs, from the float network's.

    graph: the float network. names: the nodes, the same in both graphs, whose values are compared beside the outputs;
    block_weight: what the mean of their distances counts, that of the outputs being 1.
    """

    def __init__(self, graph: fx.GraphModule, names: Sequence[str] = (), block_weight: float = 0.0) -> None:
        self.names, self.block_weight = (names if block_weight > 0 else ()), block_weight
        self._wanted = self.with_values(graph)

    def with_values(self, graph: fx.GraphModule) -> fx.GraphModule:
        """A network of the same modules that returns (the outputs, the values of the nodes named)."""
        longer = copy_of(graph.graph)
        [output] = [node for node in longer.nodes if node.op == "output"]
        values = [node for node in longer.nodes if node.name in self.names]
        output.args = ((output.args[0], values),)
        longer._codegen = fx.graph.CodeGen()
        return fx.GraphModule(graph, longer)

    def loss(self, network: nn.Module, images: Tensor) -> Tensor:
        """The mean squared distance, in units of what is wanted's mean square. network: of ``with_values``."""
        with torch.no_grad():
            wanted, wanted_values = self._wanted(images.clone())
        outputs, values = network(images.clone())
        loss = _distance(outputs, wanted)
        return loss + self.block_weight * _distance(values, wanted_values) if values else loss

    @torch.no_grad()
    def mean_loss(self, model: fx.GraphModule, images: Selection, batch_size: int, mirror: bool = False) -> float:
        """The mean of ``loss`` over all images, and over all of them turned left to right with ``mirror``."""
        network, total = self.with_values(model), 0.0
        for part in images.split(batch_size):
            losses = [float(self.loss(network, part)), *([float(self.loss(network, part.flip(-1)))] if mirror else [])]
            total += sum(losses) / len(losses) * len(part)
        return total / len(images)


def block_outputs(model: QuantizedModel, graph: fx.GraphModule) -> list[str]:
    """The nodes that blocks of reconstruction end with, but for those that are the network's own outputs."""
    [output] = [node for node in graph.graph.nodes if node.op == "output"]
    inner = {node.name for node in graph.graph.nodes} - {node.name for node in output.all_input_nodes}
    return [block.output.name for block in list_blocks(model) if block.output.name in inner]


def mirrored(images: Tensor, generator: Generator) -> Tensor:
    """Images [N, C, H, W], each turned left to right with probability ½."""
    turned = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(turned.to(images.device).reshape(-1, 1, 1, 1), images.flip(-1), images)


def _distance(outputs: Any, wanted: Any) -> Tensor:
    pairs = zip(_tensors(outputs), _tensors(wanted), strict=True)
    losses = [(a - b).square().mean() / b.square().mean().clamp(min=torch.finfo().tiny) for a, b in pairs]
    return torch.stack(losses).mean()


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]

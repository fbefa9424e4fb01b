"""How much memory the training of a block, or of the whole network, takes, from its shapes.
What is done about that is reconstruct.py's and tuning_run.py's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import fx

from pytorch_quantizer.graph.blocks import Block
from pytorch_quantizer.graph.branches import quantizer_of
from pytorch_quantizer.graph.operations import layer_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel

FLOAT_BYTES = 4
AT_ONCE = 3  # tensors of each node: its value, what a backward pass keeps beside it, its gradient
OF_A_QUANTIZER = 2  # more: the mask, and what is dropped
OF_A_WEIGHT = 16  # tensors of a weight's size: soft weight, share, logit, its gradient and Adam's moments …
COPIES = 6  # of the network while it is tuned: what learns, the best of it, a trial, and weights as they run
BESIDE = 48 * 2**20  # what torch takes for itself at the first backward pass


def block_bytes(model: QuantizedModel, block: Block, batch: int) -> int:
    """Bytes that training a block on batches of this size takes at most, its images' cache not counted."""
    values = _values(model, [*block.inputs, *block.path])
    layers = [layer_of(model, node) for node in block.layers]
    weights = sum(layer.weight.numel() for layer in layers if layer is not None)
    return BESIDE + FLOAT_BYTES * (batch * values + OF_A_WEIGHT * weights)


def network_bytes(model: QuantizedModel, batch: int) -> int:
    """Bytes that training scales, biases and steps of the whole network takes at most, images in files not counted."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    return BESIDE + FLOAT_BYTES * (batch * _values(model, model.graph.nodes) + COPIES * weights)


def _values(model: QuantizedModel, nodes: Iterable[fx.Node]) -> int:
    """How many numbers of each image a training step through these nodes holds."""
    values = 0
    for node in nodes:
        more = OF_A_QUANTIZER if quantizer_of(model, node) is not None else 0
        values += (AT_ONCE + more) * math.prod((node.meta.get("shape") or (0,))[1:])
    return values


def largest_need(model: QuantizedModel, blocks: Sequence[Block], batch: int) -> tuple[int, str]:
    """(bytes, name) of the block that takes most. Raises ValueError where there is no block."""
    return max((block_bytes(model, block, batch), block.name) for block in blocks)

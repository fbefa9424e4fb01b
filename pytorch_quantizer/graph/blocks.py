"""A simulated graph cut into blocks that are learned one after the other: residual blocks, single layers elsewhere.
What is learned in a block is calibration/'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise

from torch import fx

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.branches import quantizer_of
from pytorch_quantizer.graph.operations import is_channelwise, is_relu, is_tensor, keeps_values, label, layer_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel

MOST_LAYERS = 8  # of a block; where the graph has no way to cut a larger one, its layers are learned one by one


@dataclass(frozen=True)
class Block:
    """A stretch of the graph, in the order of execution. The stretches follow one another, so every node is in one.

    name: for people, its first layer's, and its last one's where that is another. nodes: all of it; the last one,
    ``output``, is compared with the float network's. layers: the calls of layers that the output depends on.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    layers: tuple[fx.Node, ...]

    @property
    def output(self) -> fx.Node:
        """What the block computes, before any quantizer: those that follow belong to the next block."""
        return self.nodes[-1]

    @cached_property
    def path(self) -> tuple[fx.Node, ...]:
        """The nodes that the output depends on, in order, itself included."""
        return tuple(_ancestors(self.nodes))

    @cached_property
    def inputs(self) -> tuple[fx.Node, ...]:
        """The earlier nodes whose values the path reads."""
        own = set(self.nodes)
        return tuple(dict.fromkeys(s for node in self.path for s in node.all_input_nodes if s not in own))


def list_blocks(model: QuantizedModel, *, single_layers: bool = False, patterns: Sequence[str] = ()) -> list[Block]:
    """The blocks that hold the model's layers; what follows the last layer's tensor is in none.

    A block ends where one tensor is all that is still to be read: so a residual block is one, and a layer outside of
    any is one by itself, with the ReLU behind it. Where more than MOST_LAYERS layers come between, and everywhere with
    ``single_layers``, each layer is one. patterns: each makes one block of the layers whose names match (fnmatch).
    Raises InputError for a pattern that matches no layer.
    """
    nodes = [node for node in model.graph.nodes if node.op not in ("placeholder", "output")]
    order = {node: index for index, node in enumerate(nodes)}
    possible = _possible_ends(model, nodes)
    singles = [end for end in _layer_ends(model, nodes) if end in possible]
    ends = singles if single_layers else _split_large(model, nodes, _only_tensors(model, nodes, possible), singles)
    for pattern in patterns:
        ends = _as_one(model, nodes, ends, singles, pattern)
    cuts = sorted({order[end] + 1 for end in ends})
    stretches = [nodes[first:last] for first, last in pairwise([0, *cuts])]
    return _blocks(model, _with_layers(model, stretches))


def _possible_ends(model: QuantizedModel, nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """The nodes behind which all that is still to be read are tensors with a row an image; and what these are."""
    order = {node: index for index, node in enumerate(nodes)}
    placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
    images = placeholders[0].meta.get("shape") if placeholders else None
    last_use = {
        node: max((order.get(user, len(nodes)) for user in node.users), default=-1) for node in [*placeholders, *nodes]
    }
    found, live = {}, placeholders
    for index, node in enumerate(nodes):
        live = [other for other in [*live, node] if last_use[other] > index and other.op != "get_attr"]
        if node in live and all(_has_rows(other, images) for other in live) and not _belongs_to_next(model, node):
            found[node] = list(live)
    return found


def _has_rows(node: fx.Node, images: tuple[int, ...] | None) -> bool:
    shape: tuple[int, ...] = node.meta.get("shape") or ()
    return is_tensor(node) and bool(shape) and images is not None and shape[0] == images[0]


def _belongs_to_next(model: QuantizedModel, node: fx.Node) -> bool:
    """Whether a tensor is only on its way to the next layer: quantized, reshaped; or a ReLU is still to come."""
    passes = quantizer_of(model, node) is not None or (keeps_values(model, node) and not is_relu(model, node))
    return passes or any(is_relu(model, user) for user in node.users)


def _only_tensors(
    model: QuantizedModel, nodes: Sequence[fx.Node], possible: dict[fx.Node, list[fx.Node]]
) -> list[fx.Node]:
    """The ends behind which one tensor is all that is still to be read, and the last layer's tensor."""
    found = [node for node, live in possible.items() if live == [node]]
    waits = [n for n in found if len(n.users) == 1 and is_channelwise(model, next(iter(n.users)))]  # a SiLU is to come
    return [node for node in found if node not in waits] + _layer_ends(model, nodes)[-1:]


def _layer_ends(model: QuantizedModel, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Each call of a layer, or the ReLU behind it that alone reads it."""
    found = []
    for node in nodes:
        if layer_of(model, node) is not None:
            reader = next(iter(node.users), None)
            alone = reader is not None and len(node.users) == 1 and is_relu(model, reader)
            found.append(reader if alone and reader is not None else node)
    return found


def _split_large(
    model: QuantizedModel, nodes: Sequence[fx.Node], ends: Iterable[fx.Node], singles: Iterable[fx.Node]
) -> list[fx.Node]:
    """The ends, and those of single layers where more than MOST_LAYERS lie between two."""
    wanted, alone = set(ends), set(singles)
    found, inner, layers = list[fx.Node](), list[fx.Node](), 0
    for node in nodes:
        layers += layer_of(model, node) is not None
        if node in alone:
            inner.append(node)
        if node in wanted:
            found += [*(inner if layers > MOST_LAYERS else []), node]
            inner, layers = [], 0
    return found


def _as_one(
    model: QuantizedModel, nodes: Sequence[fx.Node], ends: Sequence[fx.Node], singles: Sequence[fx.Node], pattern: str
) -> list[fx.Node]:
    """The ends, but with one block from the first to the last layer whose name matches."""
    matching = [n for n in nodes if layer_of(model, n) is not None and fnmatchcase(label(n), pattern)]
    if not matching:
        shown = ", ".join(label(n) for n in nodes if layer_of(model, n) is not None)
        raise InputError(f"reconstruction_blocks: no layer's name matches {pattern!r}; there are {shown}")
    order = {node: index for index, node in enumerate(nodes)}
    first, last = order[matching[0]], order[matching[-1]]
    following = [end for end in sorted({*ends, *singles}, key=order.__getitem__) if order[end] >= last]
    inner = [other for other in nodes[last + 1 :] if layer_of(model, other) is not None]
    within = [end for end in following if end in ends and (not inner or order[end] < order[inner[0]])]
    after = (within or following)[0]
    before = [end for end in singles if order[end] < first][-1:]
    return [end for end in ends if not first <= order[end] < order[after]] + [after, *before]


def _with_layers(model: QuantizedModel, stretches: Iterable[list[fx.Node]]) -> Iterable[list[fx.Node]]:
    """The stretches, those without a layer put before the next."""
    waiting: list[fx.Node] = []
    for stretch in stretches:
        waiting = waiting + stretch
        if any(layer_of(model, node) is not None for node in stretch):
            yield waiting
            waiting = []


def _blocks(model: QuantizedModel, stretches: Iterable[list[fx.Node]]) -> list[Block]:
    found = []
    for stretch in stretches:
        layers = tuple(node for node in _ancestors(stretch) if layer_of(model, node) is not None)
        names = list(dict.fromkeys([label(layer) for layer in layers]))
        name = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}" if names else label(stretch[-1])
        found.append(Block(name, tuple(stretch), layers))
    return found


def _ancestors(stretch: Sequence[fx.Node]) -> list[fx.Node]:
    """Of a stretch, what its last node depends on, that one included, in order."""
    needed = {stretch[-1]}
    for node in reversed(stretch):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in stretch if node in needed]

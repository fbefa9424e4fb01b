"""What a recipe asks of one tensor or weight: its number type and clipping, by where its reader stands and is named.
Which tensors are asked about is place.py's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import fx

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.operations import label, recurrence_of, weighted_nodes
from pytorch_quantizer.quantization.qtypes import NumberType
from pytorch_quantizer.quantization.recipe import Override, Recipe

EIGHT_BITS = NumberType("int", 8)


class Request(NamedTuple):
    """The number type and the clipping (clipping.CLIPPINGS) that one reader wants; overridden: an override says so."""

    number_type: NumberType
    clip: str
    overridden: bool = False


class Requests:
    """A recipe read against a graph.

    A reader is first where no layer lies before it, last where none lies behind it. A Recurrence and the linear layer
    that reads its sequence are one layer.
    """

    def __init__(self, graph: fx.GraphModule, recipe: Recipe) -> None:
        self.recipe = recipe
        layers = {node for node, _ in weighted_nodes(graph)}
        self.after_a_layer: set[fx.Node] = set()
        self.before_a_layer: set[fx.Node] = set()
        for node in graph.graph.nodes:
            if any(source in layers or source in self.after_a_layer for source in _sources(graph, node)):
                self.after_a_layer.add(node)
        for node in reversed(graph.graph.nodes):
            if any(user in layers or user in self.before_a_layer for user in _users(graph, node)):
                self.before_a_layer.add(node)

    def for_tensor(self, readers: Iterable[fx.Node], kind: str) -> Request:
        """The widest that any reader of a tensor asks for; kind "residual" where only additions read it."""
        return _widest(self._for_reading(reader, kind == "residual") for reader in readers)

    def for_weight(self, calls: Iterable[fx.Node]) -> Request:
        """The widest that any call of a layer asks for its weight."""
        return _widest(self._for_weight(call) for call in calls)

    def check_patterns(self, readers: Iterable[fx.Node]) -> None:
        """Raise InputError for an override whose pattern matches no reader's name."""
        names = {name for reader in readers for name in _names(reader)}
        for override in self.recipe.overrides:
            if not any(fnmatchcase(name, override.layers) for name in names):
                shown = ", ".join(sorted(names)[:5])
                raise InputError(f"override {override.layers!r} matches no layer; layers are {shown} …")

    def _for_reading(self, reader: fx.Node, is_residual: bool) -> Request:
        request = Request(self._base(reader, self.recipe.activations, is_residual), self.recipe.clip)
        for override in self._overrides(reader):
            request = _overridden(request, override.activations, override.clip)
        return request

    def _for_weight(self, call: fx.Node) -> Request:
        request = Request(self._base(call, self.recipe.weights), self.recipe.weight_clip)
        for override in self._overrides(call):
            request = _overridden(request, override.weights, override.weight_clip)
        return request

    def _overrides(self, reader: fx.Node) -> list[Override]:
        matching = [override for name in _names(reader) for override in self.recipe.matching(name)]
        return [override for override in self.recipe.overrides if override in matching]

    def _base(self, reader: fx.Node, general: str, is_residual: bool = False) -> NumberType:
        """The widest of what the recipe says for residuals, the first and the last layer, where they apply.

        What it leaves open is 8 bits, or the general number type where that is wider.
        """
        recipe, otherwise = self.recipe, NumberType.parse(general)
        applies = (is_residual, reader not in self.after_a_layer, reader not in self.before_a_layer)
        special = [
            text for text, applied in zip((recipe.residual, recipe.first, recipe.last), applies, strict=True) if applied
        ]
        open_ = max(otherwise, EIGHT_BITS, key=_bits)
        return max((NumberType.parse(text) if text else open_ for text in special), key=_bits, default=otherwise)


def _sources(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """What a node reads; of a Recurrence what its linear layer reads, and its state."""
    if recurrence_of(graph, node) is None:
        return node.all_input_nodes
    linear, *state = node.all_input_nodes
    return [*linear.all_input_nodes, *state]


def _users(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """Who reads a node; of a Recurrence's linear layer, who reads the Recurrence."""
    recurrences = [user for user in node.users if recurrence_of(graph, user) is not None and user.args[0] is node]
    return [*(user for user in node.users if user not in recurrences), *(u for user in recurrences for u in user.users)]


def _bits(number_type: NumberType) -> int:
    return number_type.bits


def _names(reader: fx.Node) -> list[str]:
    """The names that an override's pattern may match: the reader's own, and the path of the layer it calls."""
    return [label(reader), *([str(reader.target)] if reader.op == "call_module" else [])]


def _overridden(request: Request, number_type: str | None, clip: str | None) -> Request:
    if number_type is None and clip is None:
        return request
    return Request(NumberType.parse(number_type) if number_type else request.number_type, clip or request.clip, True)


def _widest(requests: Iterable[Request]) -> Request:
    """The one of most bits; among equals one that an override made."""
    return max(requests, key=lambda request: (request.number_type.bits, request.overridden))

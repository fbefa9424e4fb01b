"""What a recipe asks of one tensor or weight: its number type and clipping, by where its reader stands and is named.
Which tensors are asked about is place.py's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import fx

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.operations import label, layer_nodes
from pytorch_quantizer.quantization.qtypes import NumberType
from pytorch_quantizer.quantization.recipe import Recipe


class Request(NamedTuple):
    """The number type and the clipping (clipping.CLIPPINGS) that one reader wants."""

    number_type: NumberType
    clip: str


class Requests:
    """A recipe read against a graph.

    A reader is first where no layer lies before it, last where none lies behind it.
    """

    def __init__(self, graph: fx.GraphModule, recipe: Recipe) -> None:
        self.recipe = recipe
        layers = {node for node, _ in layer_nodes(graph)}
        self.after_a_layer: set[fx.Node] = set()
        self.before_a_layer: set[fx.Node] = set()
        for node in graph.graph.nodes:
            if any(source in layers or source in self.after_a_layer for source in node.all_input_nodes):
                self.after_a_layer.add(node)
        for node in reversed(graph.graph.nodes):
            if any(user in layers or user in self.before_a_layer for user in node.users):
                self.before_a_layer.add(node)

    def for_tensor(self, readers: Iterable[fx.Node], kind: str) -> Request:
        """The widest that any reader of a tensor asks for; kind "residual" where only additions read it."""
        residual = self.recipe.residual if kind == "residual" else None
        return _widest(self._for_reading(reader, residual) for reader in readers)

    def for_weight(self, calls: Iterable[fx.Node]) -> Request:
        """The widest that any call of a layer asks for its weight."""
        return _widest(self._for_weight(call) for call in calls)

    def check_patterns(self, readers: Iterable[fx.Node]) -> None:
        """Raise InputError for an override whose pattern matches no reader's name."""
        names = {label(reader) for reader in readers}
        for override in self.recipe.overrides:
            if not any(fnmatchcase(name, override.layers) for name in names):
                shown = ", ".join(sorted(names)[:5])
                raise InputError(f"override {override.layers!r} matches no layer; layers are {shown} …")

    def _for_reading(self, reader: fx.Node, residual: str | None) -> Request:
        number_type, clip = self._base(reader, self.recipe.activations, residual), self.recipe.clip
        for override in self.recipe.matching(label(reader)):
            number_type = NumberType.parse(override.activations) if override.activations else number_type
            clip = override.clip or clip
        return Request(number_type, clip)

    def _for_weight(self, call: fx.Node) -> Request:
        number_type, clip = self._base(call, self.recipe.weights), self.recipe.weight_clip
        for override in self.recipe.matching(label(call)):
            number_type = NumberType.parse(override.weights) if override.weights else number_type
            clip = override.weight_clip or clip
        return Request(number_type, clip)

    def _base(self, reader: fx.Node, general: str, residual: str | None = None) -> NumberType:
        """The widest of what the recipe says in general, for residuals, and for the first and the last layer."""
        first = self.recipe.first if reader not in self.after_a_layer else None
        last = self.recipe.last if reader not in self.before_a_layer else None
        wanted = [NumberType.parse(text) for text in (general, residual, first, last) if text]
        return max(wanted, key=lambda number_type: number_type.bits)


def _widest(requests: Iterable[Request]) -> Request:
    return max(requests, key=lambda request: request.number_type.bits)

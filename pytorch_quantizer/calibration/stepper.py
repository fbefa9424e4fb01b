"""A graph run node by node over several batches at once, so that a layer can be changed before anything reads it.
What is changed, and why, is the corrections' business (corrections.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from torch import Tensor, fx

Values = list[Any]  # a node's value for each batch


class Stepper:
    """values: of each node that has been computed and is still to be read, a list with an entry a batch."""

    def __init__(self, graph: fx.GraphModule, batches: list[Tensor]) -> None:
        self.graph, self.batches = graph, batches
        self.values: dict[fx.Node, Values] = {}
        self._done: set[fx.Node] = set()
        self._interpreter = fx.Interpreter(graph)
        self._order = {node: index for index, node in enumerate(graph.graph.nodes)}
        self._last_use = {node: max([self._order[user] for user in node.users], default=-1) for node in self._order}

    def step(self, node: fx.Node) -> Values:
        """Compute ``node`` for every batch from the values before it."""
        self._done.add(node)
        if node.op == "placeholder":
            self.values[node] = list(self.batches)
        else:
            self.values[node] = [self.compute(node, index, {}) for index in range(len(self.batches))]
        return self.values[node]

    def run_to(self, node: fx.Node) -> Values:
        """Compute every node up to ``node`` that hasn't been, dropping values that nothing behind it reads."""
        for other in islice(self._order, self._order[node] + 1):
            if other not in self._done:
                self.step(other)
                self.forget(other, {node})
        return self.values[node]

    def compute(self, node: fx.Node, index: int, instead: Mapping[fx.Node, Any]) -> Any:
        """A node's value for batch ``index``, some of what it reads replaced by ``instead``; nothing is overwritten."""

        def value(source: fx.Node) -> Any:
            return instead[source] if source in instead else self.values[source][index]

        args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
        kept = {name: given for name, given in kwargs.items() if name != "inplace"}
        return getattr(self._interpreter, node.op)(node.target, args, kept)

    def forget(self, at: fx.Node, keep: set[fx.Node]) -> None:
        """Drop the values that nothing behind ``at`` reads, but for ``keep``."""
        done = [node for node in self.values if self._last_use[node] <= self._order[at] and node not in keep]
        for node in done:
            del self.values[node]

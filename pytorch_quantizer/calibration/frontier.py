"""A graph computed up to some node for all calibration images, stretch after stretch, with only what is still to be
read kept. What is done between two stretches is reconstruct.py's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from pytorch_quantizer.calibration.activation_cache import ActivationCache, Rows
from pytorch_quantizer.calibration.calibrate import device_of


class Frontier:
    """rows: of each value that a later node reads, and of the last node computed, a row an image."""

    def __init__(self, graph: fx.GraphModule, cache: ActivationCache, images: Rows, batch: int) -> None:
        self.graph, self.cache, self.batch = graph, cache, batch
        self.count = images.written
        self.rows: dict[fx.Node, Rows] = {node: images for node in graph.graph.nodes if node.op == "placeholder"}
        self._interpreter = fx.Interpreter(graph)
        self._nodes = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
        self._order = {node: index for index, node in enumerate(graph.graph.nodes)}
        self._done = 0

    @torch.no_grad()
    def advance(self, end: fx.Node) -> None:
        """Compute the nodes up to ``end``. What isn't read any more is dropped; whoever holds its rows can read on."""
        done = self._done
        while self._done == done or self._nodes[self._done - 1] is not end:
            self._done += 1
        stretch = self._nodes[done : self._done]
        kept = [node for node in [*self.rows, *stretch] if node is end or self._is_read_behind(node, end)]
        fresh: dict[fx.Node, Rows] = {}
        for start in range(0, self.count, self.batch):
            known = self._run(stretch, slice(start, start + self.batch))
            for node in kept:
                if node in known and node not in self.rows:
                    value = known[node]
                    if node not in fresh:
                        fresh[node] = self.cache.room(self.count, value.shape[1:], value.dtype)
                    fresh[node].append(value)
        self.rows = {node: rows for node, rows in self.rows.items() if node in kept} | fresh

    @torch.no_grad()
    def error(self, path: Sequence[fx.Node], target: Rows) -> float:
        """The mean squared difference of what ``path`` computes from ``target``."""
        total = 0.0
        for start in range(0, self.count, self.batch):
            rows = slice(start, start + self.batch)
            output = self._run(path, rows)[path[-1]]
            total += float((output - target.read(rows).to(output.device)).double().square().mean()) * len(output)
        return total / self.count

    def _run(self, nodes: Sequence[fx.Node], rows: slice) -> dict[fx.Node, Tensor]:
        """The values of some nodes for some images."""
        device, read = device_of(self.graph), {source for node in nodes for source in node.all_input_nodes}
        known = {node: kept.read(rows).to(device) for node, kept in self.rows.items() if node in read}
        for node in nodes:
            known[node] = run_node(self._interpreter, node, known)
        return known

    def _is_read_behind(self, node: fx.Node, end: fx.Node) -> bool:
        return node.op != "get_attr" and any(self._order[user] > self._order[end] for user in node.users)


def run_node(interpreter: fx.Interpreter, node: fx.Node, known: Mapping[fx.Node, Tensor]) -> Tensor:
    """A node's value from those before it; nothing is overwritten. Attributes are read where they are needed."""

    def value(source: fx.Node) -> Tensor:
        if source in known:
            return known[source]
        return run_node(interpreter, source, known)  # a get_attr of an earlier stretch

    args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
    kept = {name: given for name, given in kwargs.items() if name != "inplace"}
    found: Tensor = getattr(interpreter, node.op)(node.target, args, kept)
    return found

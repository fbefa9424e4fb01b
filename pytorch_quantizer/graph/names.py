"""Names for what is added to a graph. What nodes are called for people is operations.label's business."""

from __future__ import annotations

from itertools import chain, count

from torch import fx


def free_name(graph: fx.GraphModule, name: str, *, inside: str | None = None) -> str:
    """The name, or the first of name_1, name_2 … that is free in the graph's root or in its submodule ``inside``."""
    taken = graph if inside is None else getattr(graph, inside, None)
    candidates = chain([name], (f"{name}_{i}" for i in count(1)))
    return next(candidate for candidate in candidates if not hasattr(taken, candidate))

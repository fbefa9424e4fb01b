"""Which settings nothing beats: the Pareto front of accuracy against cost.
The chart of it is tradeoff.py's.
"""

from __future__ import annotations

from collections.abc import Sequence


def on_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Whether each point is on the front: no other costs at most as much, is worth at least as much, and differs.

    Points that are equal in both are on it together; one without cost or value (NaN) never is.
    """
    pairs = list(zip(costs, values, strict=True))
    return [_known(pair) and not any(_beats(other, pair) for other in pairs) for pair in pairs]


def _beats(other: tuple[float, float], pair: tuple[float, float]) -> bool:
    return other[0] <= pair[0] and other[1] >= pair[1] and other != pair


def _known(pair: tuple[float, float]) -> bool:
    return all(number == number for number in pair)

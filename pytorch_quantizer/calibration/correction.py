"""Correction: what was done to one tensor of a simulated model.
Who does it: corrections.py (means and gains), second_order.py (the weights' codes).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Correction:
    """What was done to one tensor. layers: those that carry the gain and the shift, by name.

    error_before, error_after: mean squared difference from the float network's tensor on the images of the
    correction; None where it has none. kept: whether the layers carry it. Empirical corrections of activations and
    batch norms are kept only where the error falls; weights get the moments that they are to have, whatever it does.
    """

    tensor: str
    layers: tuple[str, ...]
    error_before: float | None = None
    error_after: float | None = None
    kept: bool = True

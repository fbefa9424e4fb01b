"""What people read of a comparison: the tables and sentences on the screen, and compare.json in a folder.
The numbers are comparison_record.py's; nothing is computed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.experiments.comparison_record import (
    FILE,
    INTEGER,
    ONNXRUNTIME,
    SIMULATED,
    Comparison,
    Difference,
    TensorComparison,
)
from pytorch_quantizer.export.agreement import SAME, TIES, TensorAgreement

NAMES = {SIMULATED: "simulation", INTEGER: "integer reference", ONNXRUNTIME: "ONNX Runtime"}
RATES = ("top-1", "same prediction")
MOST_ROWS = 24  # of the table of tensors; compare.json holds them all


def comparison_text(comparison: Comparison) -> str:
    """Models side by side, the tensors that differ, and the first difference of each model in words."""
    parts = [_models(comparison), _tensors(comparison), _alone(comparison), *_firsts(comparison)]
    if comparison.floats:
        parts.append(f"computed in float by the integer reference too: {', '.join(comparison.floats)}")
    if comparison.exported is not None:
        exported = comparison.exported
        parts.append(f"\nONNX file: {exported.label}; weights: {exported.weight_type}\n{exported.operators}")
    return "\n".join(parts)


def write_comparison(comparison: Comparison, record: dict[str, Any], folder: Path) -> None:
    """Write compare.json, the record and the comparison, whole or not at all."""
    text = json.dumps({**record, **comparison.as_dict()}, indent=2, allow_nan=False)
    write_atomically(folder / FILE, f"{text}\n".encode())


def _models(comparison: Comparison) -> str:
    names = {model: name for model, name in NAMES.items() if model not in comparison.left_out}
    rates, apart = (comparison.top1, comparison.predictions_agree), comparison.logits_apart
    rows = [
        ["", *names.values()],
        *([name, *(_percent(found.get(model)) for model in names)] for name, found in zip(RATES, rates, strict=True)),
        ["logits apart, at most", *(_number(apart.get(model)) for model in names)],
    ]
    rows = [row for row in rows if any(row[1:])]  # without labels there is no top-1
    return "\n".join(f"{name:<24}" + "".join(f"{cell:>20}" for cell in cells) for name, *cells in rows)


def _tensors(comparison: Comparison) -> str:
    """The tensors that differ in any model, in the order of execution, the first MOST_ROWS of them."""
    differing = [tensor for tensor in comparison.tensors if any(map(_differs, _agreements(tensor)))]
    if not differing:
        return f"\nall {len(comparison.tensors)} tensors have the simulation's codes everywhere"
    table = pd.DataFrame([_cells(tensor) for tensor in differing[:MOST_ROWS]])
    table = table.drop(columns=[name for name in table if not any(table[name])])
    more = len(differing) - len(table)
    tail = f"\n… and {more} more: {FILE} holds them all" if more else ""
    return (
        f"\n{len(differing)} of {len(comparison.tensors)} tensors differ from the simulation: how many codes, by how "
        "much at the most;\nalone: in integers, from the simulation's codes of its inputs; else each model by itself\n"
        f"{table.to_string(index=False)}{tail}\n"
    )


def _cells(tensor: TensorComparison) -> dict[str, str]:
    cells = {"tensor": tensor.name, "type": tensor.type}
    for name, found in zip(("alone", "integer", "ONNX Runtime"), _agreements(tensor), strict=True):
        cells[name] = f"{found.differing:,} (±{found.most})" if found is not None and found.differing else ""
    return cells | {"why": "" if tensor.why == SAME else tensor.why}


def _agreements(tensor: TensorComparison) -> list[TensorAgreement | None]:
    return [tensor.alone, tensor.integer, tensor.onnxruntime]


def _differs(found: TensorAgreement | None) -> bool:
    return found is not None and found.differing > 0


def _alone(comparison: Comparison) -> str:
    """What all tensors come to, each from the simulation's codes of its inputs."""
    opening = "each tensor in integers, from the simulation's codes of its inputs:"
    differing = [tensor for tensor in comparison.tensors if tensor.alone.differing]
    if not differing:
        return f"{opening} the same codes everywhere"
    most, share, from_tie = (
        max(getattr(tensor.alone, key) for tensor in differing) for key in ("most", "share", "from_tie")
    )
    others = [tensor for tensor in differing if tensor.why != TIES]
    kind = f"{others[0].name} is no tie: {others[0].why}" if others else "all of them ties"
    return (
        f"{opening} {len(differing)} of {len(comparison.tensors)} differ, by at most {most}, in at most {share:.1e} of "
        f"the codes, up to {from_tie:.1e} from a half before rounding; {kind}"
    )


def _firsts(comparison: Comparison) -> list[str]:
    """A sentence a model, and two where ONNX Runtime is compared with the integer reference."""
    found = {(difference.model, difference.beside): difference for difference in comparison.differences}
    pairs = [(model, SIMULATED) for model in (INTEGER, ONNXRUNTIME)] + [(ONNXRUNTIME, INTEGER)]
    return [_first(comparison, *pair, found.get(pair)) for pair in pairs if pair[0] not in comparison.left_out] + [
        f"{NAMES[model]} did not run: {reason}" for model, reason in comparison.left_out.items()
    ]


def _first(comparison: Comparison, model: str, beside: str, found: Difference | None) -> str:
    if found is None:
        return f"{NAMES[model]} against {NAMES[beside]}: the same codes in every tensor"
    return (
        f"{NAMES[model]} against {NAMES[beside]}: the first tensor that differs is {found.tensor}, "
        f"{found.position} of {len(comparison.tensors)}: {found.differing:,} of {found.places:,} codes "
        f"({found.share:.1e}), by at most {found.most}: {found.why}"
    )


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{rate:.2%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"

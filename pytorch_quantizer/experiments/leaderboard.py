"""The leaderboard: every method at every width, as recipes; its rows, means and intervals over seeds, and tables.
Measuring is cells.py's, the command scripts/leaderboard.py's, the picture reports/methods.py's.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.network_list import parse_names
from pytorch_quantizer.graph.requests import EIGHT_BITS
from pytorch_quantizer.quantization.qtypes import NumberType
from pytorch_quantizer.quantization.recipe import Recipe

DEFAULT_SETTINGS = "W8A8,W8A4,W4A8,W4A4,W3A3,W2A4,W2A2"
RESIDUALS = {"narrow": False, "wide": True}  # block outputs as additions read them: the activations' bits, or 8
COLUMNS = (
    *("dataset", "arch", "method", "weights", "activations", "seed", "top1", "fp32_top1", "first_last", "residual"),
    *("granularity", "weight_grid", "deployable", "seconds", "samples", "error"),
)
GROUP = ["dataset", "arch", "method", "weights", "activations", "residual"]
LEVEL = 0.95  # of the interval of a mean over seeds
AFFINE_UP_TO = 2  # bits: there all weights' grids have zero points, as symmetric narrow ones have three of four levels

BEST_RANGES = {"clip": "mse", "weight_clip": "output_mse"}
STATISTICAL = {**BEST_RANGES, "activation_correction": "both"}
SECOND_ORDER = {**BEST_RANGES, "weight_rounding": "second_order", "rounding_order": "size", "correction_images": 1024}
MIXED = {**BEST_RANGES, "mixed_precision": "both"}
CHANNELS = {"deployable": False, "activation_granularity": "per_channel"}
LEARNED = {"clip": "mse", "weight_clip": "mse"}
QDROP = {**LEARNED, "reconstruction": "block", "reconstruction_drop": 0.5, "reconstruction_iterations": 1000}
BRECQ = {**QDROP, "reconstruction_drop": 0.0}
TUNING = {"tuning_epochs": 10, "tuning_rate": 0.005, "tuning_blocks": 1.0, "tuning_mirror": True}

# A method by name: the fields of a recipe that it changes beside the widths. A new method is a line here.
METHODS: dict[str, dict[str, Any]] = {
    "minmax": {},
    "mse": {"clip": "mse", "weight_clip": "mse"},
    "aciq laplace": {"clip": "laplace", "weight_clip": "laplace"},
    "aciq paper": {
        **CHANNELS,
        **{"clip": "laplace", "weight_clip": "mse", "weight_correction": "both"},
        **{"activation_allocation": "bits", "weight_allocation": "bits"},
    },
    "output mse": BEST_RANGES,
    "mixed precision": MIXED,
    "mixed precision measured": {**MIXED, "mixed_precision_criterion": "measured"},
    "statistical": STATISTICAL,
    "gptq": {**STATISTICAL, "weight_rounding": "gptq"},
    "second order": SECOND_ORDER,
    "second order + tuning": {**SECOND_ORDER, **TUNING},
    "second order + tuned weights": {**SECOND_ORDER, **TUNING, "tuning_epochs": 20, "tuning_weight_rate": 0.002},
    "adaround": {**BRECQ, "reconstruction": "layer"},
    "brecq": BRECQ,
    "brecq + tuning": {**BRECQ, **TUNING},
    "qdrop": QDROP,
    "qdrop + tuning": {**QDROP, **TUNING},
    "long qdrop + tuning": {**QDROP, "reconstruction_iterations": 2500, **TUNING},
    "qat": {**LEARNED, "weight_narrow": False, "weight_symmetric": True},
}
TRAINED = ("qat",)  # methods whose network is trained before it is measured (trained_cell.py)


@dataclass(frozen=True)
class Setting:
    """A width of weights and one of activations."""

    weights: int
    activations: int

    def __str__(self) -> str:
        return f"W{self.weights}A{self.activations}"


def parse_settings(text: str) -> list[Setting]:
    """Read "W4A4,W2A4". Raises InputError for anything else."""
    return list(dict.fromkeys(_parse_setting(part) for part in parse_names("--settings", text)))


def parse_methods(text: str | None) -> list[str]:
    """The methods that are named, all for None. Raises InputError for one that isn't there."""
    if text is None:
        return list(METHODS)
    return [_known("--methods", part, METHODS) for part in parse_names("--methods", text)]


def parse_residuals(text: str) -> list[str]:
    """Read "narrow,wide". Raises InputError for another."""
    return [_known("--residual", part, RESIDUALS) for part in parse_names("--residual", text)]


def parse_seeds(text: str) -> list[int]:
    """Read "0,1,2". Raises InputError for what isn't a whole number of 0 or more."""
    parts = parse_names("--seeds", text)
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--seeds must be whole numbers of 0 or more, divided by commas, got {text!r}")
    return [int(part) for part in parts]


def recipe_of(method: str, setting: Setting, residual: str, seed: int) -> Recipe:
    """A cell's recipe. Raises InputError where the method's fields don't allow these widths."""
    fields: dict[str, Any] = {"wide_residual": RESIDUALS[residual], "seed": seed}
    fields |= {"weight_symmetric": setting.weights > AFFINE_UP_TO, **METHODS[method]}
    weights, activations = f"int{setting.weights}", f"int{setting.activations}"
    return Recipe(name=f"{method} {setting}", weights=weights, activations=activations, **fields)


def policy(recipe: Recipe) -> dict[str, Any]:
    """What a row says of its recipe beside method and widths."""
    first_last = [text or _at_least_8_bits(recipe) for text in (recipe.first, recipe.last)]
    granularity = f"weights {recipe.weight_granularity}, activations {recipe.activation_granularity}"
    return {
        "first_last": "/".join(dict.fromkeys(first_last)),
        "granularity": granularity.replace("_", "-"),
        "weight_grid": "symmetric" if recipe.weight_symmetric else "affine",
        "deployable": recipe.deployable,
    }


def _at_least_8_bits(recipe: Recipe) -> str:
    """What first and last layer have where the recipe leaves it open: 8 bits, or as the others where wider."""
    weights, activations = (
        str(max(NumberType.parse(text), EIGHT_BITS, key=lambda number_type: number_type.bits))
        for text in (recipe.weights, recipe.activations)
    )
    return weights if weights == activations else f"weights {weights}, activations {activations}"


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a method and setting: the mean over seeds, half the interval of that mean, and seconds.

    rows: COLUMNS, a row a cell. Columns: GROUP, top1, half_interval (Student's t; NaN of one seed), seeds, failed,
    seconds (the mean), fp32_top1, first_last, granularity, deployable.
    """
    return pd.DataFrame([_summed(dict(zip(GROUP, key, strict=True)), cells) for key, cells in _groups(rows)])


def markdown(rows: pd.DataFrame, note: str) -> str:
    """Tables of top-1 in %: of each network and residual policy one, a row a method, a column a setting."""
    parts = [f"# Every method at every width\n\n{note}"]
    table = summary(rows)
    for (dataset, arch, residual), part in table.groupby(["dataset", "arch", "residual"], sort=False):
        heading = f"## {arch} on {dataset}, {residual} residual stream: float32 {100 * part['fp32_top1'].iloc[0]:.2f} %"
        parts += [heading, _table(part)]
    errors = rows[rows["error"] != ""]
    parts += ["## Cells that failed", *_failures(errors)] if len(errors) else []
    return "\n\n".join(parts) + "\n"


def _groups(rows: pd.DataFrame) -> Any:
    return rows.groupby(GROUP, sort=False, dropna=False)


def _summed(key: dict[str, Any], cells: pd.DataFrame) -> dict[str, Any]:
    tops = cells["top1"].dropna()
    half = math.nan
    if len(tops) > 1:
        from scipy.stats import t as student

        half = float(student.ppf((1 + LEVEL) / 2, len(tops) - 1) * tops.std() / math.sqrt(len(tops)))
    same = {name: cells[name].iloc[0] for name in ("fp32_top1", "first_last", "granularity", "deployable")}
    counts = {"seeds": len(tops), "failed": int((cells["error"] != "").sum())}
    return key | {"top1": tops.mean(), "half_interval": half, "seconds": cells["seconds"].mean()} | counts | same


def _table(part: pd.DataFrame) -> str:
    shown = part.assign(setting="W" + part["weights"].str[3:] + "A" + part["activations"].str[3:])
    settings = list(dict.fromkeys(shown["setting"]))
    lines = [["method", "deployable", *settings], ["---"] * (len(settings) + 2)]
    for method, row in shown.groupby("method", sort=False):
        cells = {cell["setting"]: _shown(cell) for cell in row.to_dict("records")}
        deployable = "yes" if row["deployable"].iloc[0] else "no"
        lines.append([str(method), deployable, *(cells.get(setting, "–") for setting in settings)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(cell: dict[Any, Any]) -> str:
    """The mean, with half the interval where there are several seeds, and the seconds that quantizing took."""
    if math.isnan(cell["top1"]):
        return "failed"
    half = "" if math.isnan(cell["half_interval"]) else f" ± {100 * cell['half_interval']:.2f}"
    return f"{100 * cell['top1']:.2f}{half} ({cell['seconds']:.0f} s)"


def _failures(errors: pd.DataFrame) -> list[str]:
    named = errors["arch"] + ", " + errors["method"] + ", " + errors["weights"] + " " + errors["activations"]
    lines = [
        f"- {name}, seed {seed}: {error}"
        for name, seed, error in zip(named, errors["seed"], errors["error"], strict=True)
    ]
    return ["\n".join(lines)]


def _known(flag: str, part: str, known: Sequence[str] | dict[str, Any]) -> str:
    if part in known:
        return part
    close = difflib.get_close_matches(part, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(f"{flag} must be among {', '.join(known)}, got {part!r}{hint}")


def _parse_setting(text: str) -> Setting:
    match = re.fullmatch(r"w(\d+)a(\d+)", text.lower())
    if not match or not all(2 <= int(bits) <= 16 for bits in match.groups()):
        raise InputError(f"--settings must be like W4A8, weights and activations of 2 to 16 bits, got {text!r}")
    return Setting(int(match[1]), int(match[2]))

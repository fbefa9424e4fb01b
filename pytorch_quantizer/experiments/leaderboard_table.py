"""The leaderboard's rows: those of several runs as one table, means and intervals over seeds, Markdown.
Which cells there are is leaderboard.py's, the picture reports/methods.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.leaderboard import METHODS, RESIDUALS

COLUMNS = (
    *("dataset", "arch", "method", "weights", "activations", "seed", "top1", "fp32_top1", "first_last", "residual"),
    *("granularity", "weight_grid", "deployable", "seconds", "samples", "error"),
)
NOT_TEXT = ("top1", "fp32_top1", "seconds", "samples", "deployable")  # what a cell that failed may lack
SHARE = r"[01](\.\d*)?(e-\d+)?"
RULES = {  # of cells, as text, in a file of rows
    **{"weights": r"int\d+", "activations": r"int\d+", "seed": r"\d+", "residual": "|".join(RESIDUALS)},
    **{"top1": f"{SHARE}|nan", "fp32_top1": SHARE, "seconds": r"[\d.]+|nan"},
}
POLICY = ["first_last", "granularity", "weight_grid", "deployable"]  # what a method has at a width, by its version
GROUP = ["dataset", "arch", "method", "weights", "activations", "residual"]
LEVEL = 0.95  # of the interval of a mean over seeds
# A float network's top-1 on two machines, whose sums round otherwise, may differ by a share, or of few images by these.
FLOAT_MARGIN, FLOAT_IMAGES = 1e-3, 2


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a leaderboard.csv. Raises InputError, naming the file, for what isn't one."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the leaderboard.csv in it")
    try:
        table = pd.read_csv(
            path, dtype={"samples": "Int64"}, keep_default_na=False, na_values={name: [""] for name in NOT_TEXT}
        )
    except (OSError, ValueError) as error:  # pandas' errors of damaged files are ValueErrors
        raise InputError(f"can't read {path}: {' '.join(str(error).split())}") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: give the leaderboard.csv of this version")
    for name, rule in RULES.items():
        wrong = table.loc[~table[name].map(str).str.fullmatch(rule), name]
        if len(wrong):
            raise InputError(f"{path}: {name} must be as pq leaderboard writes it, got {wrong.iloc[0]!r}")
    if (table["top1"].isna() & (table["error"] == "")).any():
        raise InputError(f"{path}: top1 must be there wherever error is empty")
    return table[list(COLUMNS)]


def joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The cells of several tables as one table; of a cell that several hold, the first's that didn't fail.

    tables: by their names in messages, COLUMNS, a row a cell. Networks stand in the order they come in, then narrow
    before wide, wide types before narrow ones, methods as METHODS, seeds. Raises InputError as
    ``require_same_networks``, and where seeds of a method would be of several policies.
    """
    require_same_networks(tables)
    filled = [table for table in tables.values() if len(table)]
    if not filled:
        return next(iter(tables.values()))
    rows = pd.concat(filled, ignore_index=True)
    keys = {
        "network": rows.groupby(["dataset", "arch"], sort=False).ngroup(),
        "residual": _ranks(rows["residual"], RESIDUALS),
        "weights": -_bits(rows["weights"]),
        "activations": -_bits(rows["activations"]),
        "method": _ranks(rows["method"], METHODS),
    }
    order = pd.DataFrame(keys).assign(seed=rows["seed"], failed=rows["error"] != "")
    order = order.sort_values([*order.columns], kind="stable")
    cells = rows.loc[order.index].drop_duplicates([*GROUP, "seed"]).reset_index(drop=True)
    for key, part in _groups(cells[cells["error"] == ""]):
        _require_one_policy(key, part)
    return cells


def require_same_networks(tables: Mapping[str, pd.DataFrame]) -> None:
    """Raise InputError where a network isn't the same one in all tables, or was evaluated on another number of images.

    tables: by their names in messages, each with dataset, arch, fp32_top1, samples and error. Float top-1 may differ as
    it does between machines.
    """
    first: dict[tuple[str, str], tuple[str, float, int]] = {}
    for name, table in tables.items():
        measured = table[table["error"] == ""].drop_duplicates(["dataset", "arch", "fp32_top1", "samples"])
        columns = (measured[column] for column in ("dataset", "arch", "fp32_top1", "samples"))
        for dataset, arch, top1, samples in zip(*columns, strict=True):
            other, known, images = first.setdefault((dataset, arch), (name, top1, samples))
            difference = round(abs(known - top1) * samples)
            if images != samples or difference > max(FLOAT_IMAGES, FLOAT_MARGIN * samples):
                raise InputError(
                    f"--join: tables must be of the same weights and test images; of {arch} on {dataset} {other} has "
                    f"{known:.2%} right of {images:.0f} images in float32, {name} {top1:.2%} of {samples:.0f}: "
                    "leave one of them out"
                )


def _require_one_policy(key: Sequence[str], rows: pd.DataFrame) -> None:
    """A mean over seeds is of one thing."""
    _, arch, method, weights, activations, residual = key
    for name in POLICY:
        values = dict(zip(rows[name].astype(str), rows["seed"], strict=True))
        if len(values) > 1:
            said = " and ".join(f"{value!r} (seed {seed})" for value, seed in values.items())
            raise InputError(
                f"--join: {method} of {weights} {activations} {residual} on {arch} has {name} {said}: "
                "measure all seeds again, or leave out the table of the older version"
            )


def _bits(types: pd.Series) -> pd.Series:
    return types.str.removeprefix("int").astype(int)


def _ranks(names: pd.Series, known: Iterable[str]) -> pd.Series:
    """The places of names among those that are known; one that isn't, as of another version, stands behind all."""
    places = {name: place for place, name in enumerate(known)}
    return names.map(lambda name: places.get(name, len(places)))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a method and setting: the mean over seeds, half the interval of that mean, and seconds.

    rows: COLUMNS, a row a cell. Columns: GROUP, top1, half_interval (Student's t; NaN of one seed), seeds, failed,
    seconds (the mean), samples (that each evaluated), fp32_top1, first_last, granularity, deployable.
    """
    return pd.DataFrame([_summed(dict(zip(GROUP, key, strict=True)), cells) for key, cells in _groups(rows)])


def markdown(rows: pd.DataFrame, note: str) -> str:
    """Tables of top-1 in %: of each network and residual policy one, a row a method, a column a setting."""
    parts = [f"# Every method at every width\n\n{note}"]
    table = summary(rows)
    for (dataset, arch, residual), part in table.groupby(["dataset", "arch", "residual"], sort=False):
        float32 = f"float32 {100 * part['fp32_top1'].iloc[0]:.2f} %"
        images = "".join(f" of {count} images" for count in part["samples"].dropna().unique())
        heading = f"## {arch} on {dataset}, {residual} residual stream: {float32}{images}"
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
    counts = {"seeds": len(tops), "failed": int((cells["error"] != "").sum()), "samples": cells["samples"].max()}
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

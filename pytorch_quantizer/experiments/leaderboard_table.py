"""The leaderboard's rows: those of several runs as one table, means and intervals over seeds, Markdown.
Which cells there are is leaderboard.py's, the picture reports/methods.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.leaderboard import METHODS, RESIDUALS

COLUMNS = (
    *("dataset", "arch", "method", "weights", "activations", "seed", "top1", "fp32_top1", "first_last", "residual"),
    *("granularity", "weight_grid", "deployable", "seconds", "samples", "calibration_images", "epochs"),
    *("float_weights", "error"),
)
TYPES = {  # of columns of numbers, any of which may be missing
    **dict.fromkeys(("top1", "fp32_top1", "seconds"), "float64"),
    **dict.fromkeys(("samples", "calibration_images", "epochs"), "Int64"),
}
MAY_LACK = (*TYPES, "deployable")  # empty is missing there, elsewhere text
NEEDED = ("fp32_top1", "samples")  # of every cell
MEASURED = ("top1", "seconds")  # of one that didn't fail
TEXTS = {  # of columns in a file of rows
    **{"weights": r"int\d+", "activations": r"int\d+", "seed": r"\d+", "residual": "|".join(RESIDUALS)},
    **{"float_weights": "[0-9a-f]+"},
}
POLICY = ["first_last", "granularity", "weight_grid", "deployable"]  # what a method has at a width, by its version
DRAWN = ["calibration_images", "epochs"]  # what a run learned from
# A float network's top-1 on two machines, whose sums round otherwise, may differ by a share, or of few images by these.
FLOAT_MARGIN, FLOAT_IMAGES = 1e-3, 2
GROUP = ["dataset", "arch", "method", "weights", "activations", "residual"]
CELL = [*GROUP, "seed"]
SUMMARY = (
    *(*GROUP, "top1", "half_interval", "seconds", "seeds", "failed", "samples"),
    *("fp32_top1", "first_last", "granularity", "deployable"),
)
LEVEL = 0.95  # of the interval of a mean over seeds


def table_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows of COLUMNS as a table."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(TYPES)


def read_rows(path: Path) -> pd.DataFrame:
    """The rows of a leaderboard.csv. Raises InputError, naming the file, for what isn't one."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the leaderboard.csv in it")
    try:
        lacking = {name: [""] for name in MAY_LACK}
        table = pd.read_csv(path, dtype={"float_weights": str}, keep_default_na=False, na_values=lacking)
    except (OSError, ValueError) as error:  # pandas' errors of damaged files are ValueErrors
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise InputError(f"can't read {path} ({why}): give the leaderboard.csv that pq leaderboard wrote") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: give the leaderboard.csv of this version")
    for name, rule in TEXTS.items():
        _require(path, table, name, table[name].map(str).str.fullmatch(rule))
    _require(path, table, "deployable", table["deployable"].isin([True, False]) | table["deployable"].isna())
    for name, kind in TYPES.items():
        numbers = pd.to_numeric(table[name], errors="coerce")
        lacks = table[name].isna() & (name not in NEEDED) & ((table["error"] != "") | (name not in MEASURED))
        most = 1.0 if name in ("top1", "fp32_top1") else math.inf
        whole = (numbers % 1 == 0) | (kind == "float64")
        _require(path, table, name, lacks | (numbers.between(0, most) & whole))
    return table[list(COLUMNS)].astype(TYPES)


def _require(path: Path, table: pd.DataFrame, name: str, right: pd.Series) -> None:
    wrong = table.loc[~right.astype(bool), name]
    if len(wrong):
        shown = "nothing" if pd.isna(wrong.iloc[0]) else str(wrong.iloc[0])
        raise InputError(f"{path}: {name} must be as pq leaderboard writes it, got {shown}")


def joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The cells of several tables as one table; of a cell that several hold, the first's that didn't fail.

    tables: by their names in messages, COLUMNS, a row a cell. Networks stand in the order they come in, then narrow
    before wide, wide types before narrow ones, methods as METHODS, seeds. Raises InputError where a network has other
    weights, or was evaluated on other images, in one table than in another.
    """
    return _joined(tables)[list(COLUMNS)]


def _joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The same with the name of each cell's table."""
    named = [table.assign(table=name) for name, table in tables.items() if len(table)]
    if not named:
        return next(iter(tables.values())).assign(table="")
    rows = pd.concat(named, ignore_index=True)
    for _, part in rows.groupby(["dataset", "arch"], sort=False):
        _require_same_network(part)
    keys = {
        "network": rows.groupby(["dataset", "arch"], sort=False).ngroup(),
        "residual": _ranks(rows["residual"], RESIDUALS),
        "weights": -_bits(rows["weights"]),
        "activations": -_bits(rows["activations"]),
        "method": _ranks(rows["method"], METHODS),
    }
    order = pd.DataFrame(keys).assign(seed=rows["seed"], failed=rows["error"] != "")
    order = order.sort_values([*order.columns], kind="stable")
    return rows.loc[order.index].drop_duplicates(CELL).reset_index(drop=True)


def require_fitting(tables: Mapping[str, pd.DataFrame]) -> None:
    """Raise InputError as ``joined``, and where seeds of a method differ in policy or in how much they learned from."""
    cells = _joined(tables)
    for _, part in _groups(cells[cells["error"] == ""]):
        _require_one_policy(part)


def beside(table: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """The rows of another table that stand beside this run's: of none of its cells, and like it where it has a mean.

    That is, of the seeds of a method none of another policy than ``own`` has.
    """
    fields = [*POLICY, *DRAWN]
    policies = {tuple(row[GROUP]): row[fields].astype(str).tolist() for _, row in own[own["error"] == ""].iterrows()}
    is_like = [
        policies.get(tuple(row[GROUP]), row[fields].astype(str).tolist()) == row[fields].astype(str).tolist()
        for _, row in table.iterrows()
    ]
    return without(table[np.array(is_like, dtype=bool)], own)


def without(table: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table but for those of these cells. cells: CELL."""
    return table[~pd.MultiIndex.from_frame(table[CELL]).isin(pd.MultiIndex.from_frame(cells[CELL]))]


def _require_same_network(rows: pd.DataFrame) -> None:
    """A network is one thing, and so are the images that it is evaluated on. rows: its own, and table."""
    first = rows.iloc[0]
    near = (rows["fp32_top1"] - first["fp32_top1"]).abs() * rows["samples"]
    is_near = near.astype(float).round() <= np.maximum(FLOAT_IMAGES, FLOAT_MARGIN * rows["samples"])
    same = {
        "weights (SHA-256)": rows["float_weights"] == first["float_weights"],
        "number of test images": rows["samples"] == first["samples"],
        "float32 accuracy": is_near,
    }
    columns = ("float_weights", "samples", "fp32_top1")
    for (what, alike), column in zip(same.items(), columns, strict=True):
        others = rows[~alike.astype(bool)]
        if len(others):
            other = others.iloc[0]
            said = f"{first[column]} in {first['table']} and {other[column]} in {other['table']}"
            raise InputError(
                "--join: tables must be of one network and its images, "
                f"{first['arch']} on {first['dataset']} has another {what}: {said}"
            )


def _require_one_policy(rows: pd.DataFrame) -> None:
    """A mean over seeds is of one thing. rows: those of a group, and table."""
    for name in (*POLICY, *DRAWN):
        values = rows.drop_duplicates(name)
        if len(values) > 1:
            said = " and ".join(
                f"{'none' if pd.isna(value) else value} (seed {seed}, {table})"
                for value, seed, table in zip(values[name], values["seed"], values["table"], strict=True)
            )
            _, arch, method, weights, activations, residual = rows[GROUP].iloc[0]
            raise InputError(
                f"--join: {method} of {weights} {activations} {residual} on {arch} has {name} {said}: "
                "measure all its seeds alike, or leave a table out"
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
    made = [_summed(dict(zip(GROUP, key, strict=True)), cells) for key, cells in _groups(rows)]
    return pd.DataFrame(made, columns=list(SUMMARY))


def markdown(rows: pd.DataFrame, note: str) -> str:
    """Tables of top-1 in %: of each network and residual policy one, a row a method, a column a setting."""
    parts = [f"# Every method at every width\n\n{note}"]
    table = summary(rows)
    for (dataset, arch, residual), part in table.groupby(["dataset", "arch", "residual"], sort=False):
        float32 = f"float32 {100 * _first_known(part['fp32_top1']):.2f} %"
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
    same = {name: _first_known(cells[name]) for name in ("fp32_top1", "first_last", "granularity", "deployable")}
    counts = {
        "seeds": len(tops),
        "failed": int((cells["error"] != "").sum()),
        "samples": _first_known(cells["samples"]),
    }
    return key | {"top1": tops.mean(), "half_interval": half, "seconds": cells["seconds"].mean()} | counts | same


def _first_known(values: pd.Series) -> Any:
    """What rows have in common; cells that failed may lack it."""
    return next(iter(values.dropna()), None)


def _table(part: pd.DataFrame) -> str:
    shown = part.assign(setting="W" + part["weights"].str[3:] + "A" + part["activations"].str[3:])
    settings = list(dict.fromkeys(shown["setting"]))
    lines = [["method", "deployable", *settings], ["---"] * (len(settings) + 2)]
    for method, row in shown.groupby("method", sort=False):
        cells = {cell["setting"]: _shown(cell) for cell in row.to_dict("records")}
        deployable = {True: "yes", False: "no", None: "–"}[_first_known(row["deployable"])]
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

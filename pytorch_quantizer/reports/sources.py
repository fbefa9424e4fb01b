"""What reports are made of, read from files: runs, sweeps, leaderboards, diagnoses and other commands' records.
Those who wrote the files are experiments/, sweeps/ and training/; what is shown of them, the sections' business.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.reports import layers, methods, tradeoff
from pytorch_quantizer.reports.confusion import distinct
from pytorch_quantizer.sweeps.origins import FILE as ORIGINS
from pytorch_quantizer.sweeps.origins import read_origins

KNOWN = (
    *("result.json", "results.csv", "leaderboard.csv", "sensitivity.json", "compare.json", "ablation.json"),
    "bench.json",
)
TEXTS = ("error", "recipe", "method", "reason")
READING: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # a recipe may be called "null"
REMEDY = f"give a folder that holds {', '.join(KNOWN[:-1])} or {KNOWN[-1]}, or such a file"


@dataclass(frozen=True)
class Run:
    """A folder of `pq run`: result.json, layers.csv, and details.json where it is there."""

    name: str
    record: dict[str, Any]
    layers: pd.DataFrame
    details: dict[str, Any] | None


@dataclass(frozen=True)
class Table:
    """results.csv of a sweep with its origins.json, leaderboard.csv, or sensitivity.csv with sensitivity.json."""

    name: str
    rows: pd.DataFrame
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """compare.json, ablation.json, bench.json, or the report of a training."""

    name: str
    record: dict[str, Any]


@dataclass
class Material:
    """All that a page is made of, in the order it was given."""

    runs: list[Run] = field(default_factory=list)
    sweeps: list[Table] = field(default_factory=list)
    leaderboards: list[Table] = field(default_factory=list)
    diagnoses: list[Table] = field(default_factory=list)
    comparisons: list[Record] = field(default_factory=list)
    ablations: list[Record] = field(default_factory=list)
    benches: list[Record] = field(default_factory=list)
    trainings: list[Record] = field(default_factory=list)


def read_material(paths: Iterable[Path]) -> Material:
    """Read folders and files. Raises InputError that names the file for what isn't there, is damaged or something else.

    A folder without a known file is looked through for folders that hold one.
    """
    material = Material()
    for path in paths:
        for file in _files(Path(path)):
            _read(file, material)
    names = distinct([run.name for run in material.runs])
    material.runs = [replace(run, name=name) for run, name in zip(material.runs, names, strict=True)]
    return material


def read_run(path: Path) -> Run:
    """The run whose result.json this is."""
    folder = path.parent
    record = _read_json(path, ("dataset", "arch", "fp32", "quantized", "recipe"))
    details = folder / "details.json"
    found = _read_json(details, ("tensors", "batches", "answers")) if details.exists() else None
    return Run(folder.name, record, _read_csv(folder / "layers.csv", layers.TENSOR_NEEDS), found)


def run_of(name: str, record: dict[str, Any], tensors: pd.DataFrame, details: dict[str, Any] | None) -> Run:
    """A run that is in memory, as it would be read from the files that it writes."""
    text = io.StringIO(tensors.to_csv(index=False))
    return Run(name, json.loads(json.dumps(record)), _typed(pd.read_csv(text, **READING)), details)


def read_sweep(path: Path) -> pd.DataFrame:
    """A sweep's results.csv; it may be empty."""
    return _read_csv(path, tradeoff.NEEDED)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} isn't there: {REMEDY}")
    found = [path / name for name in KNOWN if (path / name).is_file()]
    found = found or sorted(file for name in KNOWN for file in path.glob(f"*/{name}") if file.is_file())
    if not found:
        raise InputError(f"{path} holds nothing to report: {REMEDY}")
    return found


def _read(path: Path, material: Material) -> None:
    if path.suffix == ".json":
        _read_record(path, material)
        return
    if path.suffix != ".csv":
        raise InputError(f"{path} is nothing to report: {REMEDY}")
    columns = _read_csv(path, ()).columns
    name = path.parent.name or path.stem
    if set(methods.NEEDED) <= set(columns):
        material.leaderboards.append(Table(name, _read_csv(path, methods.NEEDED)))
    else:
        material.sweeps.append(Table(name, read_sweep(path), read_origins(path.with_name(ORIGINS))))


def _read_record(path: Path, material: Material) -> None:
    record = _read_json(path, ())
    name = path.parent.name or path.stem
    if "quantized" in record:
        material.runs.append(read_run(path))
    elif "float_top1" in record:
        rows = _read_csv(path.with_suffix(".csv"), layers.LAYER_NEEDS)
        material.diagnoses.append(Table(name, rows, record))
    elif "predictions_agree" in record:
        material.comparisons.append(Record(name, _read_json(path, ("tensors", "top1", "arch", "dataset"))))
    elif "networks" in record:
        material.ablations.append(Record(name, _read_json(path, ("networks", "dataset", "calibration", "seed"))))
    elif "left_out" in record:
        material.benches.append(Record(name, _read_json(path, ("rows", "image", "arch", "dataset", "recipe"))))
    elif "epochs" in record:
        material.trainings.append(Record(path.stem, _read_json(path, ("config", "test", "epochs"))))
    else:
        raise InputError(f"{path} is the record of no command whose results have a page: {REMEDY}")


def _read_json(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    record = _reading(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(record, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(record).__name__}; measure again")
    _require(path, record, needed)
    return record


def _read_csv(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    table = _reading(path, lambda: pd.read_csv(path, **READING))
    _require(path, list(table.columns), needed)
    return _typed(table)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """The same with text where text belongs, also where it is missing."""
    texts = {name: table[name].astype(object).fillna("").astype(str) for name in TEXTS if name in table}
    return table.assign(**texts)


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except FileNotFoundError as error:
        raise InputError(f"{path} isn't there: measure again, or {REMEDY}") from error
    except (OSError, ValueError) as error:  # pandas' and json's errors of damaged files are ValueErrors
        raise InputError(f"can't read {path}: {' '.join(str(error).split())}; measure again") from error


def _require(path: Path, found: Any, needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in found]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}: an older version wrote it, or it is something else")

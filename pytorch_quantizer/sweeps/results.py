"""The table of a sweep, OUTPUT/results.csv and results.parquet: its columns, and how a row comes into it.
What a point is lives in plan.py, how it is measured in bench.py.

One flat table, a row a point, COLUMNS in their order; ``read_results`` gives it with its types. Rates are fractions
of 1. A row whose ``error`` isn't empty has no figures (NaN). Names that begin with ``fp32_`` are the float network's.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pytorch_quantizer.atomic import atomic_path, require_writable, write_atomically
from pytorch_quantizer.errors import InputError

CSV, PARQUET = "results.csv", "results.parquet"

# Every column, its type and what it says.
COLUMNS: dict[str, tuple[str, str]] = {
    "dataset": ("string", "data set's name"),
    "arch": ("string", "network's name"),
    "checkpoint": ("string", "file of its weights, as given; empty: bundled, or torchvision's"),
    "recipe": ("string", "recipe's name, with the fields that a grid changed"),
    "weights": ("string", "number type of weights: int4, …"),
    "activations": ("string", "number type of activations"),
    "seed": ("int64", "of the calibration draw and of learning"),
    "deployable": ("boolean", "whether integer kernels could run it"),
    "samples": ("Int64", "images that were evaluated"),
    "top1": ("float64", "accuracy of the quantized network"),
    "top1_low": ("float64", "lower end of its 95 % interval (Wilson)"),
    "top1_high": ("float64", "upper end"),
    "top5": ("float64", "label among the five highest logits"),
    "agreement": ("float64", "share of images on which quantized and float network predict the same class"),
    "precision": ("float64", "macro average, as the next two"),
    "recall": ("float64", "macro average"),
    "f1": ("float64", "macro average"),
    "size_bytes": ("Int64", "the packed checkpoint on disk"),
    "fp32_top1": ("float64", "float network's, on the same images; so all fp32_ columns"),
    "fp32_top5": ("float64", ""),
    "fp32_precision": ("float64", ""),
    "fp32_recall": ("float64", ""),
    "fp32_f1": ("float64", ""),
    "fp32_size_bytes": ("Int64", "parameters and buffers in safetensors, on disk"),
    "seconds": ("float64", "quantizing, evaluating and weighing; loading and the float network's run are left out"),
    "quantizing_seconds": ("float64", "of these, calibration and all that is learned"),
    "calibration_samples": ("int64", "images that ranges were chosen from"),
    "calibration_split": ("string", "the split that they are of"),
    "skipped_images": ("Int64", "files that could not be decoded and were passed over"),
    "device": ("string", "cpu or cuda"),
    "threads": ("Int64", "CPU threads that it had"),
    "settings": ("string", "JSON: the recipe's fields that aren't the defaults"),
    "error": ("string", "empty, or why there are no figures"),
    "key": ("string", "digest of all that determines the point but the code: settings, recipe, weights, images"),
    "code": ("string", "digest of the package's sources and its libraries' versions"),
}


class Results:
    """A results.csv that rows are put into, each whole or not at all; whoever puts must hold the folder's lock.

    Rows are kept by ``key``: a point that comes again takes its earlier row's place and is never there twice.
    """

    def __init__(self, folder: Path) -> None:
        """Read what is there. Raises InputError for a file that isn't such a table, or that can't be written."""
        self.folder = Path(folder)
        require_writable(self.folder / CSV)
        for left in self.folder.glob(f".{CSV}.*.tmp"):  # of a process that was killed as it wrote
            left.unlink()
        table = read_results(self.folder) if (self.folder / CSV).exists() else empty_table()
        self._rows: dict[str, dict[str, Any]] = {row["key"]: row for row in _as_rows(table)}
        self._lines = {key: _line(row) for key, row in self._rows.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, key: str) -> Mapping[str, Any] | None:
        """The row of this key, or None."""
        return self._rows.get(key)

    def put(self, row: Mapping[str, Any]) -> None:
        """Write a row, which may lack columns, so that it outlives the process; the row of the same key goes."""
        whole: dict[str, Any] = {name: row.get(name) for name in COLUMNS}
        self._lines[whole["key"]] = _line(whole)
        self._rows[whole["key"]] = whole
        self._write()

    def finish(self, order: Sequence[str]) -> None:
        """Bring the rows with these keys into this order, others behind them, and write both files."""
        keys = [*(key for key in order if key in self._rows), *(key for key in self._rows if key not in set(order))]
        self._rows = {key: self._rows[key] for key in keys}
        self._lines = {key: self._lines[key] for key in keys}
        self._write()
        self.write_parquet()

    def table(self) -> pd.DataFrame:
        """All rows with the columns' types."""
        return typed(pd.DataFrame(list(self._rows.values()), columns=list(COLUMNS)))

    def write_parquet(self) -> bool:
        """Write results.parquet where pandas can (extra ``[sweep]``: pyarrow); whether it could."""
        if importlib.util.find_spec("pyarrow") is None:
            return False
        with atomic_path(self.folder / PARQUET) as temporary:
            self.table().to_parquet(temporary, index=False)
        return True

    def _write(self) -> None:
        write_atomically(self.folder / CSV, "".join((_csv([], header=True), *self._lines.values())).encode())


def read_results(path: Path) -> pd.DataFrame:
    """A results.csv or results.parquet, or a folder's: COLUMNS with their types, and columns of others behind them.

    Raises InputError for a file that isn't there, can't be read or lacks a column.
    """
    path = Path(path)
    path = path / CSV if path.is_dir() else path
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: pip install 'pytorch-quantizer[sweep]', or read {CSV}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {path} as a sweep's results: {' '.join(str(error).split())}") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise InputError(f"{path} is no sweep's results: it lacks the column {missing[0]!r}; choose another folder")
    try:
        return typed(table)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}; restore it, or move it away") from error


def empty_table() -> pd.DataFrame:
    """The columns, without rows."""
    return typed(pd.DataFrame(columns=list(COLUMNS)))


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The same with COLUMNS' types; text that is absent is empty."""
    texts = {name: "" for name, (kind, _) in COLUMNS.items() if kind == "string"}
    return table.fillna(texts).astype({name: kind for name, (kind, _) in COLUMNS.items()})


def _read_csv(path: Path) -> pd.DataFrame:
    # Python reads floats to the last bit, pandas not everywhere: they come as text, and `typed` makes floats of them.
    kinds = {name: "string" if kind == "float64" else kind for name, (kind, _) in COLUMNS.items()}
    return pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=[""])


def _as_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with None where a value is absent."""
    plain = table.astype(object)
    return [dict(zip(COLUMNS, row, strict=True)) for row in plain.where(plain.notna(), None)[list(COLUMNS)].values]


def _line(row: Mapping[str, Any]) -> str:
    return _csv([row])


def _csv(rows: Iterable[Mapping[str, Any]], *, header: bool = False) -> str:
    text = io.StringIO()
    table = pd.DataFrame(list(rows), columns=list(COLUMNS), dtype=object)
    table.to_csv(text, index=False, header=header, lineterminator="\n")
    return text.getvalue()

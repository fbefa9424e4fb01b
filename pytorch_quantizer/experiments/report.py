"""What people read of a run: the table on the screen, and result.json, details.json and layers.csv in a folder.
The numbers come from inference.py; nothing is computed here. Pages are reports/' business.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.experiments.inference import InferenceResult
from pytorch_quantizer.quantization.dynamic_fields import DYNAMIC

RATES = {"top-1": "top1", "top-5": "top5", "precision": "precision", "recall": "recall", "F1": "f1"}


def result_table(record: dict[str, Any]) -> str:
    """float32 beside quantized, a line a measure, as text."""
    fp32, quantized = record["fp32"], record["quantized"]
    rows = [
        (name, f"{fp32[key]:.2%}", f"{quantized[key]:.2%}", f"{100 * (quantized[key] - fp32[key]):+.2f} points")
        for name, key in RATES.items()
    ]
    rows.insert(1, ("  95 % interval", _interval(fp32), _interval(quantized), ""))
    rows.append(("same prediction", "", f"{quantized['agreement']:.2%}", ""))
    size = quantized["size_bytes"] / fp32["size_bytes"]
    rows.append(("size of the file", _bytes(fp32), _bytes(quantized), f"{size:.2f} x"))
    for pair in zip(fp32["latency"], quantized["latency"], strict=True):
        rows += _latency_rows(*pair)
    rows += [(*row, "") for row in zip(("runs as", "  by", "  on"), _ran(fp32), _ran(quantized), strict=True)]
    lines = [f"{name:<22}{a:>20}{b:>20}   {c}" for name, a, b, c in [("", "float32", "quantized", "difference"), *rows]]
    return "\n".join([_heading(record), *lines])


def _latency_rows(fp32: dict[str, Any], quantized: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Median and spread of one batch size; in the end how many times as long."""
    name = f"latency, batch of {fp32['batch_size']}"
    ratio = f"{quantized['median_ms'] / fp32['median_ms']:.2f} x"
    return [
        (name, f"{fp32['median_ms']:.2f} ms", f"{quantized['median_ms']:.2f} ms", ratio),
        ("  10 % – 90 % of runs", _spread(fp32), _spread(quantized), ""),
    ]


def _spread(latency: dict[str, Any]) -> str:
    return f"{latency['p10_ms']:.2f} – {latency['p90_ms']:.2f} ms"


def _ran(entry: dict[str, Any]) -> tuple[str, str, str]:
    """What was timed: simulated or not, the runtime, the device and the CPU's threads."""
    timed = entry["latency"][-1]
    threads = f"{timed['threads']} thread{'s' if timed['threads'] > 1 else ''}"
    return timed["label"], timed["runtime"], f"cpu, {threads}" if timed["device"] == "cpu" else timed["device"]


def write_report(result: InferenceResult, folder: Path) -> None:
    """Write result.json, details.json and layers.csv, each whole or not at all."""
    text = json.dumps(result.record, indent=2, allow_nan=False)
    write_atomically(folder / "result.json", f"{text}\n".encode())
    details = json.dumps(result.details, separators=(",", ":"), allow_nan=False)
    write_atomically(folder / "details.json", f"{details}\n".encode())
    write_atomically(folder / "layers.csv", result.layers.to_csv(index=False).encode())


def _heading(record: dict[str, Any]) -> str:
    recipe = record["recipe"]
    types = [f"{what} {record.get('types', recipe)[what]}" for what in ("weights", "activations")]
    budgets = [f"{name} {value:.10g}" for name, value in record.get("budgets", {}).items()]
    told = [*types, *budgets, *_dynamic(recipe), f"clip {recipe['clip']}"]
    told.append("deployable" if record["deployable"] else "not deployable")
    return f"{record['arch']} on {record['dataset']}, {record['samples']} images: {', '.join(told)}"


def _dynamic(recipe: dict[str, Any]) -> list[str]:
    """Which layers are quantized at all, where the ranges are dynamic."""
    if recipe.get("statistics") != DYNAMIC:
        return []
    *others, last = recipe["dynamic_layers"].split(", ")
    named = f"{', '.join(others)} and {last}" if others else last
    return [f"{named} layers only", "ranges from each batch"]


def _interval(entry: dict[str, Any]) -> str:
    low, high = entry["top1_interval"]
    return f"{low:.2%} – {high:.2%}"


def _bytes(entry: dict[str, Any]) -> str:
    return f"{entry['size_bytes']:,} B"

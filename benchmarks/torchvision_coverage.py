"""Quantize every torchvision classification model and table what became of it: results/torchvision_coverage.md.

python benchmarks/torchvision_coverage.py [--models resnet18 vit_b_16 …] [--resume]

Random weights: this asks whether a network is captured, folded, quantized and run, not how well. One process a model,
so that a large one leaves no memory behind. --resume keeps the rows of benchmarks/results/torchvision_coverage.json.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.graph.operations import label, layer_nodes, tensor_inputs
from pytorch_quantizer.graph.place import producers
from pytorch_quantizer.models import create_model, default_preprocessing, list_models
from pytorch_quantizer.models.cifar_resnet import DEPTHS
from pytorch_quantizer.models.mlp import HIDDEN

RESULTS = Path(__file__).parent / "results" / "torchvision_coverage.json"
TABLE = Path(__file__).parent / "results" / "torchvision_coverage.md"
BATCH = 2


def main() -> None:
    """Measure the models one process at a time, or with --one a single one in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="default: all of torchvision's classification models")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    rows = {row["model"]: row for row in json.loads(RESULTS.read_text())["rows"]} if options.resume else {}
    for name in tqdm(options.models or torchvision_models()):
        if name not in rows or rows[name]["error"]:
            rows[name] = measure_apart(name)
            save(list(rows.values()))


def torchvision_models() -> list[str]:
    """All but the networks for small images."""
    return [name for name in list_models() if name not in (*DEPTHS, *HIDDEN)]


def measure_apart(name: str, script: str = __file__) -> dict[str, Any]:
    """One model in a process of its own, by a script's --one; a crash or a kill is the row's error."""
    done = subprocess.run([sys.executable, script, "--one", name], capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = done.stderr.strip().splitlines()[-1:] or ["killed"]
    return {"model": name, "error": f"exit {done.returncode}: {last[0]}"}


@torch.no_grad()
def measure(name: str) -> dict[str, Any]:
    """Quantize one model at W8A4 from two random images, run it, and count."""
    torch.manual_seed(0)
    model = create_model(name)
    size = default_preprocessing(name, "imagenet").crop
    images = torch.randn(BATCH, 3, size, size)
    start = time.perf_counter()
    quantized = pq.quantize(model, "w8a4_aciq", [images], progress=False)
    seconds = time.perf_counter() - start
    finite = bool(torch.isfinite(quantized(images)).all())
    sites = quantized.sites
    floats = [s for s in sites if s.is_float and s.reason != "network output"]
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": sum(1 for _ in layer_nodes(quantized)),
        "float_inputs": layers_reading_float(quantized),
        "weights": sum(s.kind == "weight" and s.quantizer is not None for s in sites),
        "activations": sum(s.is_activation and s.quantizer is not None for s in sites),
        "float_biases": sum(s.kind == "bias" and s.quantizer is None for s in sites),
        "float": len(floats),
        "reasons": sorted({s.reason or "" for s in floats}),
        "finite": finite,
        "seconds": round(seconds, 1),
        "error": None,
    }


def layers_reading_float(model: pq.QuantizedModel) -> list[str]:
    """The convolutions and linear layers that read a tensor no quantizer has put on a grid."""
    found = []
    for node, _ in layer_nodes(model):
        sources = producers(model, tensor_inputs(node)[0])
        if not all(isinstance(_called(model, source), pq.Quantizer) for source in sources):
            found.append(label(node))
    return found


def _called(model: pq.QuantizedModel, node: torch.fx.Node) -> Any:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None


def save(rows: list[dict[str, Any]]) -> None:
    """Write the rows as JSON and as a table to read."""
    text = json.dumps({**provenance(), "rows": rows}, indent=1)
    write_atomically(RESULTS, f"{text}\n".encode())
    head = "| model | M parameters | layers | reading float | weights | activations | left in float | reasons |"
    lines = [f"Made by `python benchmarks/{Path(__file__).name}`: random weights, W8A4.\n", head, "|" + "---|" * 8]
    table = "\n".join([*lines, *map(_line, rows)])
    write_atomically(TABLE, f"{table}\n".encode())


def _line(row: dict[str, Any]) -> str:
    if row["error"]:
        return f"| {row['model']} | | | | | | | {row['error']} |"
    kinds = sorted({_kind(reason) for reason in row["reasons"]})
    cells = [row["model"], f"{row['parameters'] / 1e6:.1f}", row["layers"], len(row["float_inputs"]), row["weights"]]
    cells += [row["activations"], row["float"], "; ".join(kinds) + ("" if row["finite"] else " NOT FINITE")]
    return "| " + " | ".join(map(str, cells)) + " |"


def _kind(reason: str) -> str:
    """The reason without the names of the tensors, so that a table can hold it."""
    if not reason.startswith("read only by "):
        return reason
    readers = reason.removeprefix("read only by ").split(", computed in float")[0]
    return "read only by " + ", ".join(sorted(set(re.findall(r"\((\w+)\)", readers))))


if __name__ == "__main__":
    main()

"""Save every torchvision classification model as a packed checkpoint and load it back, without the float model.

python benchmarks/torchvision_checkpoints.py [--models resnet18 vit_b_16 …] [--resume]

Random weights, W8A8 from two random images, small ones where the network takes them: this asks which files bring their
network along, whether its logits are the same to the bit, and how large they are. One process a model. --resume keeps
the rows of benchmarks/results/torchvision_checkpoints.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torchvision_coverage import measure_apart, torchvision_models
from tqdm import tqdm

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.models import create_model, default_preprocessing

RESULTS = Path(__file__).parent / "results" / "torchvision_checkpoints.json"
TABLE = RESULTS.with_suffix(".md")
BATCH = 2
SMALL, SMALL_INCEPTION = 64, 96  # pixels; transformers with a fixed number of positions get their own size
FIXED = ("vit_", "maxvit_")


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
            rows[name] = measure_apart(name, __file__)
            save(list(rows.values()))
    print(summary(list(rows.values())))


@torch.no_grad()
def measure(name: str) -> dict[str, Any]:
    """Quantize, save and load one model, and compare."""
    torch.manual_seed(0)
    start = time.perf_counter()
    model = create_model(name)
    images = torch.randn(BATCH, 3, *2 * [pixels(name)])
    float_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    row = {"model": name, "parameters": sum(p.numel() for p in model.parameters()), "float_bytes": float_bytes}
    quantized = pq.quantize(model, "w8a8", [images], progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        pq.save(quantized, path)
        row["file_bytes"] = path.stat().st_size
        logits = quantized(images)
        del quantized, model
        try:
            loaded = pq.load(path)
        except pq.InputError as error:
            return {**row, "alone": False, "same": False, "error": str(error).replace(str(path), "the file")}
    same = torch.equal(loaded(images), logits) and bool(logits.isfinite().all())
    return {**row, "alone": True, "same": same, "seconds": round(time.perf_counter() - start, 1), "error": None}


def pixels(name: str) -> int:
    """The side of the images that a model is given."""
    if name.startswith(FIXED):
        return int(default_preprocessing(name, "imagenet").crop or 224)
    return SMALL_INCEPTION if name == "inception_v3" else SMALL


def save(rows: list[dict[str, Any]]) -> None:
    """Write the rows as JSON and as a table to read."""
    text = json.dumps({**provenance(), "rows": rows}, indent=1)
    write_atomically(RESULTS, f"{text}\n".encode())
    lines = [f"Made by `python benchmarks/{Path(__file__).name}`: random weights, W8A8, size against float32.\n"]
    lines += [f"{summary(rows)}\n", "| model | M parameters | loads alone | same logits | file, MB | of float32 |"]
    table = "\n".join([*lines, "|" + "---|" * 6, *map(_line, rows)])
    write_atomically(TABLE, f"{table}\n".encode())


def summary(rows: list[dict[str, Any]]) -> str:
    """In a sentence."""
    alone, same = (sum(row.get(key, False) for row in rows) for key in ("alone", "same"))
    shares = [row["file_bytes"] / row["float_bytes"] for row in rows if "file_bytes" in row]
    sizes = f", sizes {min(shares):.3f} to {max(shares):.3f} of float32" if shares else ""
    return f"{len(rows)} models: {alone} load alone, {same} of them with the same logits to the bit{sizes}"


def _line(row: dict[str, Any]) -> str:
    if "file_bytes" not in row:
        return f"| {row['model']} | | | | | {row['error']} |"
    share = f"{row['file_bytes'] / row['float_bytes']:.3f}"
    said = ["yes" if row[key] else "**no**" for key in ("alone", "same")]
    cells = [row["model"], f"{row['parameters'] / 1e6:.1f}", *said, f"{row['file_bytes'] / 1e6:.1f}", share]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()

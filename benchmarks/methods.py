"""Each method's row on CIFAR-10: ResNet-20 and ResNet-32 at W8A8, W8A4, W4A8, W4A4 and W3A3, every method on its own.

python benchmarks/methods.py [--data ../shared/data] [--json FILE] [--only TEXT …] [--networks resnet20] [--limit N]

DATA holds cifar10/ (test.npz, train_10k.npz, resnet20.th, resnet32.th). Ranges come from 1,024 training images; all
10,000 test images are evaluated. Writes FILE (default results/methods_cifar10.json) and the same table as .md.
Every finished cell is kept in --cells, so that a run that was interrupted goes on where it stopped and ends with the
same numbers; --any-code keeps cells that were computed before the code changed. --only: the rows whose name holds one
of the texts; the table then holds what else has been kept. A cell takes 10 to 60 s on one core, and there are 400.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_quantizer import InputError, Recipe
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.command_line import run
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.experiments.ablation import Bits
from pytorch_quantizer.experiments.cells import CellStore, Network
from pytorch_quantizer.experiments.inference_config import InferenceConfig, resolved

RESULTS = Path(__file__).parent / "results" / "methods_cifar10.json"
NETWORKS = ("resnet20", "resnet32")
COLUMNS = (Bits(8, 8), Bits(8, 4), Bits(4, 8), Bits(4, 4), Bits(3, 3))
SAMPLES, BATCH = 1024, 128
SHOWN = ("top1", "top1_interval", "correct", "samples", "code")

RANGES: tuple[str, ...] = (
    "minmax",
    "percentile:99.9",
    "std:3",
    "mse",
    "lp:2.4",
    "kl",
    "laplace",
    "gaussian",
    "laplace:exact",
)
RANGES += ("gaussian:exact", "auto", "auto:exact")
TYPES: tuple[str, ...] = (
    "int8",
    "int4",
    "int3",
    "int2",
    "kmeans4",
    "kmeans3",
    "kmeans2",
    "apot4",
    "apot3",
    "pot4",
    "pot3",
    "ternary",
)
TYPES += ("binary", "fp8_e4m3", "fp8_e5m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "mxint8")

BEST = {"clip": "mse", "weight_clip": "output_mse"}
CHANNELS = {"deployable": False, "activation_granularity": "per_channel"}
PAPER = {**CHANNELS, "clip": "laplace"}


@dataclass(frozen=True)
class Row:
    """A line of the table. changes: the recipe's fields beside its number types; types: those of weights instead."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None

    def recipe(self, bits: Bits) -> Recipe:
        """The recipe at a column's bits."""
        weights, activations = self.weights or f"int{bits.weights}", f"int{bits.activations}"
        return Recipe(name=self.name, weights=weights, activations=activations, **self.changes)

    @property
    def columns(self) -> tuple[Bits, ...]:
        """A number type has bits of its own: it stands beside 8-bit activations alone."""
        return COLUMNS if self.weights is None else (Bits(8, 8),)


def rows() -> tuple[Row, ...]:
    """All of them: ranges; ranges of one kind of tensor; what is done beside ranges; the literature's; number types."""
    both = [Row(f"{clip}", {"clip": clip, "weight_clip": clip}) for clip in RANGES]
    activations = [Row(f"activations {clip}", {"clip": clip}) for clip in ("mse", "laplace")]
    types = [Row(f"weights {name}", _of_type(name), name) for name in TYPES]
    return (*both, *activations, *(Row(name, changes) for name, changes in BESIDE.items()), *types)


def _of_type(name: str) -> dict[str, Any]:
    """Integers take the range of least squared error; the other types fit themselves."""
    return {"weight_clip": "mse"} if name.startswith("int") else {"deployable": False}


CORRECTED = {**BEST, "activation_correction": "both"}
BESIDE: dict[str, dict[str, Any]] = {
    "mse + output_mse": BEST,
    "mse + output_mse + wide residual": {**BEST, "wide_residual": True},
    "mse + output_mse + activation correction, mean": {**BEST, "activation_correction": "mean"},
    "mse + output_mse + activation correction, gain": {**BEST, "activation_correction": "gain"},
    "mse + output_mse + activation correction": CORRECTED,
    "mse + output_mse + activation correction + wide residual": {**CORRECTED, "wide_residual": True},
    "mse + output_mse + analytic correction": {
        **BEST,
        "activation_correction": "mean",
        "correction_source": "analytic",
    },
    "mse + output_mse + equalization": {**BEST, "equalize": True},
    "mse + output_mse + batch norm re-estimation": {**BEST, "batch_norm_reestimation": True},
    "mse + output_mse + weight correction": {**BEST, "weight_correction": "both"},
    "minmax + weight correction, mean": {"weight_correction": "mean"},
    "minmax + weight correction, variance": {"weight_correction": "variance"},
    "minmax + weight correction": {"weight_correction": "both"},
    "minmax + mixed precision": {"mixed_precision": "both"},
    "mse + output_mse + mixed precision": {**BEST, "mixed_precision": "both"},
    "mse + output_mse + mixed precision + activation correction": {**CORRECTED, "mixed_precision": "both"},
    "minmax, mean over batches": {"across_batches": "mean"},
    "minmax, online": {"statistics": "online", "deployable": False},
    "laplace, online": {"statistics": "online", "deployable": False, "clip": "laplace"},
    "per-channel activations, minmax": CHANNELS,
    "per-channel activations, laplace": PAPER,
    "per-channel activations, laplace + bit allocation": {
        **PAPER,
        "activation_allocation": "bits",
        "weight_allocation": "bits",
    },
    "per-channel activations, laplace + bin allocation": {
        **PAPER,
        "activation_allocation": "bins",
        "weight_allocation": "bins",
    },
    "per-channel activations, laplace + bit allocation + weight correction": {
        **PAPER,
        "activation_allocation": "bits",
        "weight_allocation": "bits",
        "weight_correction": "both",
    },
    "per-channel activations, laplace + bit allocation + weight correction, as printed": {
        **PAPER,
        "activation_allocation": "bits",
        "weight_allocation": "bits",
        "weight_correction": "both",
        "weight_correction_form": "paper",
    },
    "per-channel activations, laplace + mid-tread": {
        **PAPER,
        "activation_allocation": "midtread",
        "weight_allocation": "midtread",
    },
    "per-channel activations, gaussian + bit allocation": {
        **CHANNELS,
        "clip": "gaussian",
        "allocation_prior": "gaussian",
        "activation_allocation": "bits",
        "weight_allocation": "bits",
    },
}


def main() -> None:
    """Measure every cell that isn't there yet, print each as it comes, and write the table."""
    options = arguments()
    chosen = {row.name for row in rows() if not options.only or any(text in row.name for text in options.only)}
    if not chosen:
        raise InputError(f"--only {' '.join(options.only)}: no row's name holds that")
    table = options.json.with_suffix(".md")
    for path in (options.json, table):
        require_writable(path)
    store = CellStore(options.cells, any_code=options.any_code)
    results: list[dict[str, Any]] = []
    for arch in options.networks:
        network = open_network(arch, options.data / "cifar10", options.limit, store)
        results.append({"arch": arch, "fp32": shown(network.measure(None)), "cells": []})
        for cell in measured(network, chosen):
            results[-1]["cells"].append(cell)
        content = {**provenance(), "calibration_samples": SAMPLES, "limit": options.limit, "networks": results}
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(options.json, f"{text}\n".encode())
        write_atomically(table, markdown(results).encode())
    print(f"wrote {options.json} and {table}")


def arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--cells", type=Path, default=Path("results/methods_cells"), help="folder of finished cells")
    parser.add_argument("--only", nargs="+", help="rows whose name holds one of these")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--limit", type=int, help="test images, for a quick look")
    parser.add_argument("--any-code", action="store_true")
    return parser.parse_args()


def open_network(arch: str, folder: Path, limit: int | None, store: CellStore) -> Network:
    """A network with its published weights, and CIFAR-10."""
    config = InferenceConfig(
        dataset="cifar10",
        data=folder,
        arch=arch,
        checkpoint=folder / f"{arch}.th",
        calibration_samples=SAMPLES,
        batch_size=BATCH,
        limit=limit,
    )
    return Network(resolved(config), store)


def measured(network: Network, chosen: set[str]) -> Iterator[dict[str, Any]]:
    """The cells of a network, row by row, others than the chosen rows' where they are kept; an error says why."""
    todo = [(row, bits) for row in rows() for bits in row.columns]
    for number, (row, bits) in enumerate(todo, 1):
        if row.name not in chosen and network.kept(row.recipe(bits)) is None:
            continue
        place = {"row": row.name, "column": column_name(row, bits)}
        try:
            recipe = row.recipe(bits)
            found = network.measure(recipe)
            result = shown(found) | {"deployable": recipe.deployable}
            told = f"{found['top1']:7.2%}  ({'kept' if found['kept'] else str(found['seconds']) + ' s'})"
        except InputError as error:
            result = {"error": str(error), "deployable": row.changes.get("deployable", True)}
            told = f"can't be: {error}"
        print(f"{number:>3}/{len(todo)} {network.config.arch} {place['column']} {row.name:<72} {told}", flush=True)
        yield place | result


def column_name(row: Row, bits: Bits) -> str:
    """W8A4; of a number type's row: 8-bit activations."""
    return f"W{bits.weights}A{bits.activations}" if row.weights is None else "A8"


def shown(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell without what differs from run to run."""
    return {name: cell[name] for name in SHOWN}


def markdown(networks: list[dict[str, Any]]) -> str:
    """Top-1 in %: a table a network with a column a width, and one of number types with a column a network."""
    samples = networks[0]["fp32"]["samples"]
    parts = [
        f"# Each method on CIFAR-10\n\nTop-1 in % on {samples:,} test images; ranges from {SAMPLES:,} training images, "
        "seed 0. A range method is that of weights and activations alike, one range an activation tensor and one a "
        "weight channel; 'mse + output_mse': activations by mse, weights by their outputs' error. First and last "
        "layer and what only additions read: 8 bits. "
    ]
    for network in networks:
        names = [f"W{bits.weights}A{bits.activations}" for bits in COLUMNS]
        cells = [cell for cell in network["cells"] if cell["column"] in names]
        heading = f"## {network['arch']}, float32 {percent(network['fp32'])}"
        parts.append(f"{heading}\n\n{_lines(names, cells, lambda cell: cell['column'])}")
    of_types = [cell | {"arch": n["arch"]} for n in networks for cell in n["cells"] if cell["column"] == "A8"]
    heading = "## Number types of weights, 8-bit activations"
    parts.append(f"{heading}\n\n{_lines([n['arch'] for n in networks], of_types, lambda cell: cell['arch'])}")
    return "\n\n".join(parts) + "\n"


def _lines(columns: list[str], cells: list[dict[str, Any]], column_of: Callable[[dict[str, Any]], str]) -> str:
    lines = [["method", "deployable", *columns], ["---"] * (len(columns) + 2)]
    for name in dict.fromkeys(cell["row"] for cell in cells):
        row = {column_of(cell): cell for cell in cells if cell["row"] == name}
        deployable = "yes" if next(iter(row.values()))["deployable"] else "no"
        lines.append([name, deployable, *(percent(row.get(column)) for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(cell: dict[str, Any] | None) -> str:
    """A rate with two decimals; a dash where there is none."""
    return f"{100 * cell['top1']:.2f}" if cell and "top1" in cell else "–"


if __name__ == "__main__":
    run("methods.py", main)

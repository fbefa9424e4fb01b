"""Times what really runs in integers, on one thread, beside ONNX Runtime in float and what others make of the network.

    python benchmarks/bench_integer.py [--data DIR] [--models resnet18 resnet50] [--batches 1 8] [--json FILE]

Ours is export_onnx run by ONNX Runtime: 8-bit weights as int8 and as uint8, 7-bit weights, 4-bit activations, and both.
Beside it float32 in ONNX Runtime and in PyTorch, batch norms folded; ONNX Runtime's own quantize_static (QDQ, uint8
activations, a scale a channel); torch.ao's FX int8 with two engines. Random weights at 224 x 224; ranges from --images
images of the ImageNet folder --data, without it random ones: times hardly depend on values. All take turns, a pass a
round, in one process; medians of --repeats rounds, of fewer where a batch is larger. CPUs without VNNI add products of
8-bit weights of type int8 up in 16 bits, which saturates at times: the table says where; uint8 is exact everywhere,
slower, and held to no bar against float32: export_onnx takes it only there. The bars come last.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from bars import Bar, Row, Rule, bars, print_bars, save_rows
from integer_peers import ENGINES, STATIC, OnnxFile, by_torch_ao, export_float, export_static, operators
from torch import Tensor, nn

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.command_line import run
from pytorch_quantizer.data import load_dataset, make_loader
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.evaluation import Latency, compare_latency
from pytorch_quantizer.export.onnx import export_onnx
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel
from pytorch_quantizer.export.onnx_types import adds_exactly
from pytorch_quantizer.models import create_model, default_preprocessing

FLOAT, TORCH = "ONNX Runtime float32", "PyTorch float32"
OURS = {  # name → weights of all layers, the first and last too; activations; the weights' type in the file
    "W8A8 int8": ("int8", "int8", "int8"),
    "W8A8 uint8": ("int8", "int8", "uint8"),
    "W7A8 int8": ("int7", "int8", "int8"),
    "W8A4 int8": ("int8", "int4", "int8"),
    "W4A4 int8": ("int4", "int4", "int8"),
}
INT8 = tuple(name for name, (*_, weight_type) in OURS.items() if weight_type == "int8")
SATURATING = ("W8A8 int8", "W8A4 int8")  # without VNNI
PEERS = {"W8A8 int8": "int8", "W8A8 uint8": "uint8", "W7A8 int8": "int7"}  # ours → quantize_static's of the same types
AGAINST_FLOAT = {"resnet18": 0.55, "resnet50": 0.75}  # with VNNI
WITHOUT_VNNI, AGAINST_STATIC = 0.85, 1.03
LEAST_ROUNDS = 25


def rules(*, vnni: bool, models: list[str], batches: list[int]) -> list[Rule]:
    """What must be, on a CPU with VNNI or without: at batch 1 against float, everywhere against quantize_static's."""
    found = []
    for model in models:
        where = {"model": model, "batch": 1}
        if vnni and model in AGAINST_FLOAT:
            found += [Rule(where, "time", FLOAT, AGAINST_FLOAT[model], name) for name in INT8]
        if not vnni and model in AGAINST_FLOAT:
            found += [Rule(where, "time", FLOAT, WITHOUT_VNNI, name) for name in INT8 if name not in SATURATING]
        for batch in batches:
            where = {"model": model, "batch": batch}
            found += [Rule(where, "time", static(kind), AGAINST_STATIC, name) for name, kind in PEERS.items()]
    return found


def static(kind: str) -> str:
    """The name of quantize_static's model with weights of a type."""
    return f"quantize_static {kind}"


def calibration(data: Path | None, number: int, side: int) -> tuple[Tensor, str]:
    """Images [N, 3, side, side] and which they are: spread evenly over an ImageNet folder, or random."""
    if data is None:
        return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0)), "random"
    preprocessing = default_preprocessing("resnet18", "imagenet")
    if preprocessing.crop != side:
        raise InputError(f"images of an ImageNet folder are {preprocessing.crop} pixels wide, not {side}")
    loader = make_loader(load_dataset("imagenet", data, preprocessing=preprocessing), number, limit=number)
    return next(iter(loader))[0], "ImageNet"


def variants(arch: str, images: Tensor, folder: Path, threads: int) -> dict[str, nn.Module]:
    """What is timed, by name; files go into `folder`."""
    torch.manual_seed(0)
    model = create_model(arch).eval()
    folded = pq.fold(pq.capture(model))[0].eval()
    source = folder / f"{arch}.onnx"
    export_float(folded, images, source)
    found: dict[str, nn.Module] = {TORCH: folded, FLOAT: OnnxFile(source, threads, "float32")}
    for name in OURS:
        found[name] = exported(name, model, images, folder / f"{arch} {name}.onnx", threads)
    for kind in STATIC:
        path = folder / f"{arch} static {kind}.onnx"
        export_static(source, images, path, kind)
        found[static(kind)] = OnnxFile(path, threads, "integer")
    return found | {f"torch.ao {engine}": by_torch_ao(model, images, engine) for engine in ENGINES}


def exported(name: str, model: nn.Module, images: Tensor, path: Path, threads: int) -> OnnxRuntimeModel:
    """One of OURS."""
    quantized = pq.quantize(model, recipe_of(name), [images], progress=False)
    export_onnx(quantized, path, images, weight_type=OURS[name][-1])
    return OnnxRuntimeModel(path, threads=threads)


def recipe_of(name: str) -> pq.Recipe:
    """The recipe of one of OURS."""
    weights, activations, _ = OURS[name]
    return pq.Recipe(weights=weights, activations=activations, overrides=[{"layers": "*", "weights": weights}])


def measure(models: dict[str, nn.Module], images: Tensor, options: argparse.Namespace) -> list[Row]:
    """A row a variant and batch, without the network's name."""
    rows = []
    ran = {name: operators(model.path) for name, model in models.items() if hasattr(model, "path")}
    for batch in options.batches:
        repeats = max(LEAST_ROUNDS, options.repeats // batch)
        timed = images[torch.arange(batch) % len(images)]
        found = compare_latency(models, timed, threads=options.threads, repeats=repeats)
        rows += [row_of(name, latency, ran.get(name)) for name, latency in found.items()]
    return rows


def row_of(name: str, latency: Latency, ran: dict[str, int] | None) -> Row:
    """A row: the latency's fields, its median in seconds, and what ONNX Runtime ran, where it did."""
    fields = {key: value for key, value in latency.as_dict().items() if key != "batch_size"}
    row = {"batch": latency.batch_size, "implementation": name, "seconds": latency.median_ms / 1e3} | fields
    return row | ({} if ran is None else {"operators": ran})


def print_rows(rows: list[Row], *, vnni: bool) -> None:
    """A line a row, with its time as a multiple of ONNX Runtime's in float."""
    for row in rows:
        base = next(r["seconds"] for r in rows if r["implementation"] == FLOAT and r["batch"] == row["batch"])
        note = "; may saturate on this CPU" if row["implementation"] in SATURATING and not vnni else ""
        spread = f"({row['p10_ms']:.2f} to {row['p90_ms']:.2f})"
        print(
            f"{row['model']:<9} batch {row['batch']:<3} {row['implementation']:<22} {row['median_ms']:9.2f} ms "
            f"{spread:<20} {row['seconds'] / base:5.2f} x   {row['label']}, {row['runtime']}{note}"
        )


def described(options: argparse.Namespace, source: str) -> dict[str, Any]:
    """What stands beside the numbers in the file."""
    told = provenance()
    told["versions"] |= {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    told["machine"] |= {"threads": options.threads, "vnni": adds_exactly()}
    return told | {"side": options.side, "weights": "random", "calibration": f"{options.images} {source} images"}


def main() -> None:
    """Measure each network, print its table, then the bars; write what --json asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(AGAINST_FLOAT))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--data", type=Path, help="a folder with val/<wnid>/*.JPEG; default: random images")
    parser.add_argument("--images", type=int, default=16, help="that ranges are chosen from")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.json:
        require_writable(options.json)
    images, source = calibration(options.data, options.images, options.side)
    rows: list[Row] = []
    for arch in options.models:
        with tempfile.TemporaryDirectory() as folder:
            models = variants(arch, images, Path(folder), options.threads)
            measured = [{"model": arch} | row for row in measure(models, images, options)]
        print_rows(measured, vnni=adds_exactly())
        rows += measured
    if options.json:
        save_rows(options.json, rows, described(options, source))
    found: list[Bar] = bars(rows, rules(vnni=adds_exactly(), models=options.models, batches=options.batches))
    print_bars(found, f"{options.threads} thread(s), {'with' if adds_exactly() else 'without'} VNNI, medians, one run")


if __name__ == "__main__":
    run("bench_integer.py", main)

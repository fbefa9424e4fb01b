"""Whether exported ONNX files compute what the simulation said, and in integers: each figure beside what it must be.

python benchmarks/onnx_agreement.py --data ../shared/data [--json benchmarks/results/onnx_agreement.json] [--parts …]

DATA and calibration as for accuracy.py. Predictions are compared on all of CIFAR-10's test images and on the ImageNet
images that are there; ResNet-18's weights are random, and so are those of the models of which only the operators are
asked. Codes are compared tensor by tensor on the first images, each model running by itself: what differs once differs
downstream.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.data import calibration_loader, load_dataset, make_loader
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.export.agreement import simulated_codes
from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.export.onnx import export_onnx
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel, operator_report
from pytorch_quantizer.models import create_model, default_preprocessing

PARTS = ("cifar10", "imagenet", "operators")
SAMPLES = 1024
BATCH = 50
LEAST_AGREEMENT = 0.995
MOST_POINTS = 0.1
PRECISIONS = {"W8A8": "w8a8_aciq", "W8A4": "w8a4_aciq", "W4A4": "w4a4_statistical"}
ON_IMAGENET = [("squeezenet1_1", recipe) for recipe in ("w8a8", "w8a8_aciq", "w8a4_aciq")]
ON_IMAGENET += [("resnet18", recipe) for recipe in ("w8a8", "w8a4_aciq")]
IN_INTEGERS = ("resnet20", "resnet18", "resnet50", "mobilenet_v2", "squeezenet1_1")
REPORTED = ("vgg11", "googlenet", "inception_v3", "densenet121", "shufflenet_v2_x1_0", "mobilenet_v3_small")
REPORTED += ("efficientnet_b0", "regnet_y_400mf", "vit_b_32")


@dataclass(frozen=True)
class Row:
    """One figure: what was measured, its value for people, what it must be, whether it is, and what else is known."""

    what: str
    measured: str
    required: str
    met: bool
    details: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Measure every row, print each as it comes, and write them all as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="the file keeps its rows of the others"
    )
    options = parser.parse_args()
    if options.json:
        require_writable(options.json)
    parts = json.loads(options.json.read_text())["parts"] if options.json and options.json.is_file() else {}
    for part in options.parts:
        rows = [vars(row) for row in shown(part_rows(part, options.data))]
        parts[part] = {**provenance(), "rows": rows}
        if options.json:
            text = json.dumps({"parts": parts}, indent=1, ensure_ascii=False)
            write_atomically(options.json, f"{text}\n".encode())


def shown(rows: Iterator[Row]) -> Iterator[Row]:
    """Each row, printed as it comes."""
    for row in rows:
        print(f"{'ok  ' if row.met else 'MISS'} {row.what:<58} {row.measured}; must be {row.required}", flush=True)
        yield row


def part_rows(part: str, data: Path) -> Iterator[Row]:
    """The rows of one part; one exported file takes the place of the other."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if part == "cifar10":
            yield from cifar_rows(data / "cifar10", path)
        elif part == "imagenet":
            yield from imagenet_rows(data / "imagenet", path)
        else:
            yield from (operator_row(name, path) for name in (*IN_INTEGERS, *REPORTED))


def cifar_rows(folder: Path, path: Path) -> Iterator[Row]:
    """ResNet-20 on CIFAR-10."""
    model = create_model("resnet20", checkpoint=folder / "resnet20.th")
    test = make_loader(load_dataset("cifar10", folder, split="test"), BATCH)
    train = load_dataset("cifar10", folder, split="train")
    calibration = partial(calibration_loader, train, SAMPLES, batch_size=128, seed=0)
    for precision, recipe in PRECISIONS.items():
        quantized = pq.quantize(model, recipe, calibration(), progress=False)
        yield from agreement_rows(f"ResNet-20 {precision}", quantized, test, path)


def imagenet_rows(folder: Path, path: Path) -> Iterator[Row]:
    """SqueezeNet 1.1, and ResNet-18 with random weights, on the images that are there."""
    torch.manual_seed(0)
    weights = {"squeezenet1_1": {"checkpoint": folder / "squeezenet1_1.pth"}, "resnet18": {}}
    for name, recipe in ON_IMAGENET:
        arguments = weights[name]
        images = load_dataset("imagenet", folder, split="test", preprocessing=default_preprocessing(name, "imagenet"))
        calibration = calibration_loader(images, SAMPLES, batch_size=BATCH, seed=0)
        quantized = pq.quantize(create_model(name, **arguments), recipe, calibration, progress=False)
        label = f"{name} {recipe}{'' if arguments else ', random weights'}"
        yield from agreement_rows(label, quantized, make_loader(images, BATCH), path)


def agreement_rows(what: str, model: pq.QuantizedModel, loader: Any, path: Path) -> Iterator[Row]:
    """Predictions, top-1 and codes of one model."""
    images, _ = next(iter(loader))
    exported = export_onnx(model, path, images)
    runtime = OnnxRuntimeModel(path)
    found = pq.evaluate(runtime, loader, reference=model, progress=False)
    assert found.reference is not None
    assert found.agreement is not None
    points = 100 * abs(found.top1 - found.reference.top1)
    yield Row(
        f"{what}: predictions agree, {found.samples:,} images",
        f"{found.agreement:.2%}",
        f">= {LEAST_AGREEMENT:.1%}",
        found.agreement >= LEAST_AGREEMENT,
        {"weights": exported.why},
    )
    yield Row(
        f"{what}: top-1, simulated and ONNX Runtime",
        f"{found.reference.top1:.2%} and {found.top1:.2%}",
        f"within {MOST_POINTS} points",
        points <= MOST_POINTS,
    )
    yield tensor_row(what, model, runtime, images)
    yield reference_row(what, model, runtime, images[:8])


@torch.no_grad()
def tensor_row(what: str, model: nn.Module, runtime: OnnxRuntimeModel, images: Tensor) -> Row:
    """Which tensors' codes differ from the simulation's, and by how many: a report, with no bar of its own."""
    tensors = differences(runtime.codes(images), simulated_codes(model, images)[1])
    differing = {name: row for name, row in tensors.items() if row["differing"]}
    share = max((row["differing"] / row["places"] for row in tensors.values()), default=0.0)
    most = max((row["most"] for row in tensors.values()), default=0)
    first = next(iter(differing), "none")
    words = f"{len(differing)} of {len(tensors)}, first {first}, {share:.3%} of codes at the most, by up to {most}"
    return Row(f"{what}: tensors that differ", words, "-", True, {"images": len(images), "tensors": differing})


def reference_row(what: str, model: pq.QuantizedModel, runtime: OnnxRuntimeModel, images: Tensor) -> Row:
    """The exact integer reference, by itself, beside ONNX Runtime: who left the simulation at its ties."""
    _, trace = IntegerModel(model).trace(images)
    tensors = differences(runtime.codes(images), {step.name: step.result.codes for step in trace.steps})
    differing, places = (sum(row[part] for row in tensors.values()) for part in ("differing", "places"))
    words = f"{differing:,} of {places:,} codes"
    return Row(f"{what}: ONNX Runtime differs from the integer reference", words, "-", True, {"images": len(images)})


def differences(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, dict[str, int]]:
    """By tensor: places, how many codes differ, and by how much at the most."""
    apart = {name: (codes - expected[name].int()).abs() for name, codes in found.items()}
    return {
        name: {"places": codes.numel(), "differing": int((codes > 0).sum()), "most": int(codes.max())}
        for name, codes in apart.items()
    }


@torch.no_grad()
def operator_row(name: str, path: Path) -> Row:
    """What ONNX Runtime runs in integers of a model with random weights, W8A8."""
    torch.manual_seed(0)
    size = default_preprocessing(name, "imagenet").crop
    images = torch.randn(2, 3, size, size)
    model = pq.quantize(create_model(name), "w8a8", [images], progress=False)
    export_onnx(model, path, images)
    report = operator_report(path)
    counts = report.table.groupby("kind", sort=False)["integer"].agg(["sum", "size"])
    words = ", ".join(f"{kind} {row['sum']}/{row['size']}" for kind, row in counts.iterrows())
    asked = name in IN_INTEGERS
    simulated = model(images)
    apart = float((OnnxRuntimeModel(path)(images) - simulated).abs().max() / simulated.abs().max().clamp(min=1e-30))
    in_float = report.table[~report.table["integer"]].drop(columns="integer")
    details = {"in_float": in_float.to_dict("records"), "logits_apart": apart}
    required = "every layer and addition" if asked else "-"
    return Row(f"{name}: in integers", words, required, report.runs_in_integers or not asked, details)


if __name__ == "__main__":
    main()

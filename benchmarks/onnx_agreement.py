"""Whether exported ONNX files compute what the simulation said, and in integers: each figure beside what it must be.

python benchmarks/onnx_agreement.py --data ../shared/data [--json benchmarks/results/onnx_agreement.json]

DATA as for accuracy.py. Predictions are compared on all of CIFAR-10's test images and on the ImageNet images that are
there; ResNet-18's weights are random, and so are those of the models of which only the operators are asked. Codes are
compared tensor by tensor on the first images, both models running by themselves: what differs once differs downstream.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.data import calibration_loader, load_dataset, make_loader
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.export.agreement import simulated_codes
from pytorch_quantizer.export.onnx import export_onnx
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel, operator_report
from pytorch_quantizer.models import create_model, default_preprocessing

SAMPLES = 1024
BATCH = 50
LEAST_AGREEMENT = 0.995
MOST_POINTS = 0.1
SHOWN = 5  # tensors named in print; the file holds them all
PRECISIONS = {"W8A8": "w8a8_aciq", "W8A4": "w8a4_aciq", "W4A4": "w4a4_statistical"}
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
    options = parser.parse_args()
    if options.json:
        require_writable(options.json)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in all_rows(options.data, Path(folder) / "model.onnx"):
            print(f"{'ok  ' if row.met else 'MISS'} {row.what:<58} {row.measured}; must be {row.required}", flush=True)
            rows.append(vars(row))
    if options.json:
        text = json.dumps({**provenance(), "rows": rows}, indent=1, ensure_ascii=False)
        write_atomically(options.json, f"{text}\n".encode())


def all_rows(data: Path, path: Path) -> Iterator[Row]:
    """Predictions, tensors and operators; ``path`` holds one exported file after the other."""
    yield from cifar_rows(data / "cifar10", path)
    yield from imagenet_rows(data / "imagenet", path)
    for name in (*IN_INTEGERS, *REPORTED):
        yield operator_row(name, path)


def cifar_rows(folder: Path, path: Path) -> Iterator[Row]:
    """ResNet-20 on CIFAR-10."""
    model = create_model("resnet20", checkpoint=folder / "resnet20.th")
    test = make_loader(load_dataset("cifar10", folder, split="test"), BATCH)
    train = load_dataset("cifar10", folder, split="train")
    calibration = partial(calibration_loader, train, SAMPLES, batch_size=128, seed=0)
    for precision, recipe in PRECISIONS.items():
        yield from agreement_rows(f"ResNet-20 {precision}", pq.quantize(model, recipe, calibration()), test, path)


def imagenet_rows(folder: Path, path: Path) -> Iterator[Row]:
    """SqueezeNet 1.1, and ResNet-18 with random weights, on the images that are there."""
    torch.manual_seed(0)
    models = {"squeezenet1_1": {"checkpoint": folder / "squeezenet1_1.pth"}, "resnet18": {}}
    for name, arguments in models.items():
        images = load_dataset("imagenet", folder, split="test", preprocessing=default_preprocessing(name, "imagenet"))
        calibration = calibration_loader(images, 256, batch_size=BATCH, seed=0)
        quantized = pq.quantize(create_model(name, **arguments), "w8a8", calibration)
        label = f"{name} W8A8{'' if arguments else ', random weights'}"
        yield from agreement_rows(label, quantized, make_loader(images, BATCH), path)


def agreement_rows(what: str, model: pq.QuantizedModel, loader: Any, path: Path) -> Iterator[Row]:
    """Predictions, top-1 and codes of one model."""
    images, _ = next(iter(loader))
    exported = export_onnx(model, path, images)
    runtime = OnnxRuntimeModel(path)
    found = pq.evaluate(runtime, loader, reference=model)
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
    yield tensor_row(what, model, runtime, (batch for batch, _ in islice(loader, 2)))


@torch.no_grad()
def tensor_row(what: str, model: nn.Module, runtime: OnnxRuntimeModel, batches: Iterable[Tensor]) -> Row:
    """Which tensors' codes differ, and by how many codes: a report, with no bar of its own."""
    tensors: dict[str, dict[str, int]] = {}
    for images in batches:
        _, simulated = simulated_codes(model, images)
        for name, codes in runtime.codes(images).items():
            apart = (codes - simulated[name].int()).abs()
            row = tensors.setdefault(name, {"places": 0, "differing": 0, "most": 0})
            row["places"] += apart.numel()
            row["differing"] += int((apart > 0).sum())
            row["most"] = max(row["most"], int(apart.max()))
    differing = {name: row for name, row in tensors.items() if row["differing"]}
    share = max((row["differing"] / row["places"] for row in tensors.values()), default=0.0)
    most = max((row["most"] for row in tensors.values()), default=0)
    first = next(iter(differing), "none")
    words = f"{len(differing)} of {len(tensors)}, first {first}, {share:.3%} of codes at the most, by up to {most}"
    return Row(f"{what}: tensors that differ", words, "-", True, {"tensors": tensors})


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
    apart = float((OnnxRuntimeModel(path)(images) - model(images)).abs().max() / model(images).abs().max())
    details = {"operators": report.table.to_dict("records"), "logits_apart": apart}
    required = "every layer and addition" if asked else "-"
    return Row(f"{name}: in integers", words, required, report.runs_in_integers or not asked, details)


if __name__ == "__main__":
    main()

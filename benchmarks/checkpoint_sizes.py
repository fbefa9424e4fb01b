"""Sizes of packed checkpoints on disk, and static quantization at 2, 4, 8 and 16 bits of a ResNet-20 and an MLP.

python benchmarks/checkpoint_sizes.py        # half a minute: trains the MLP on digits first

Sizes: ResNet-20 for CIFAR-10 against the safetensors file of its float32 weights, first and last layer at 8 bits.
Accuracy: digits, 540 test images, ranges from 512 training images, no method beyond the plain recipe. 'integer': the
share of 128 images on which the exact integer reference predicts what the simulation does. Writes
benchmarks/results/checkpoint_sizes.json.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.data import calibration_loader, load_dataset, make_loader
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.models import bundled_checkpoint, create_model, default_preprocessing
from pytorch_quantizer.training import TrainingConfig, train

RESULTS = Path(__file__).parent / "results" / "checkpoint_sizes.json"
BARS = {8: 0.28, 4: 0.16, 2: 0.10}  # of the float32 file, weights of so many bits
BITS = (2, 4, 8, 16)
EPOCHS = 30


def main() -> None:
    """Measure, print and write both tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = resnet_sizes(Path(folder))
        weights = Path(folder) / "mlp.safetensors"
        config = TrainingConfig(arch="mlp", dataset="digits", epochs=EPOCHS, device="cpu", threads=1, output=weights)
        train(config, progress=False)
        networks = {"mlp": weights, "resnet20": bundled_checkpoint("digits_resnet20")}
        static = [row for arch, file in networks.items() for row in static_rows(arch, file, Path(folder))]
    print(report(sizes, static))
    text = json.dumps({**provenance(), "sizes": sizes, "static": static}, indent=1)
    write_atomically(RESULTS, f"{text}\n".encode())


def resnet_sizes(folder: Path) -> list[dict[str, Any]]:
    """A row for each number of bits of the weights, activations at 8."""
    net = create_model("resnet20")
    whole = float_size(net, folder)
    rows = []
    for bits, most in BARS.items():
        model = pq.quantize(net, pq.Recipe(weights=f"int{bits}"), torch.randn(8, 3, 32, 32), progress=False)
        size = packed_size(model, folder)
        rows.append({"weights": f"int{bits}", "bytes": size, "float_bytes": whole, "share": size / whole, "bar": most})
    return rows


@torch.no_grad()
def static_rows(arch: str, weights: Path, folder: Path) -> list[dict[str, Any]]:
    """A row for float32 and for each number of bits, of weights and activations alike."""
    net = create_model(arch, in_channels=1, num_classes=10, checkpoint=weights)
    preprocessing = default_preprocessing(arch, "digits")
    test = make_loader(load_dataset("digits", split="test", preprocessing=preprocessing), 270)
    training = load_dataset("digits", split="train", preprocessing=preprocessing)
    few, whole = next(iter(test))[0][:128], float_size(net, folder)
    rows = [{"arch": arch, "type": "float32", "top1": pq.evaluate(net, test, progress=False).top1, "bytes": whole}]
    for bits in BITS:
        recipe = pq.Recipe(weights=f"int{bits}", activations=f"int{bits}")
        model = pq.quantize(net, recipe, calibration_loader(training, 512, batch_size=128, seed=0), progress=False)
        found = pq.evaluate(model, test, reference=net, progress=False)
        same = (IntegerModel(model)(few).argmax(1) == model(few).argmax(1)).double().mean().item()
        row = {"arch": arch, "type": f"int{bits}", "top1": found.top1, "as_float": found.agreement, "integer": same}
        rows.append({**row, "bytes": packed_size(model, folder)})
    return rows


def float_size(net: nn.Module, folder: Path) -> int:
    """Bytes of a network's float32 weights on disk."""
    save_file(net.state_dict(), folder / "float.safetensors")
    return (folder / "float.safetensors").stat().st_size


def packed_size(model: pq.QuantizedModel, folder: Path) -> int:
    """Bytes of the packed checkpoint."""
    pq.save(model, folder / "packed.safetensors")
    return (folder / "packed.safetensors").stat().st_size


def report(sizes: list[dict[str, Any]], static: list[dict[str, Any]]) -> str:
    """Both tables, to read."""
    lines = ["ResNet-20 | packed, bytes | of float32 | must be", "---|---|---|---"]
    for row in sizes:
        missed = "" if row["share"] <= row["bar"] else " **missed**"
        lines.append(f"{row['weights']} | {row['bytes']:,} | {row['share']:.3f}{missed} | ≤ {row['bar']:.2f}")
    lines += ["", "digits | type | top-1 | predicts as float32 | integer | bytes", "---|---|---|---|---|---"]
    for row in static:
        shares = [f"{row[key]:.2%}" if key in row else "" for key in ("top1", "as_float", "integer")]
        lines.append(" | ".join([row["arch"], row["type"], *shares, f"{row['bytes']:,}"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""What reconstruction promises of memory and of being killed, on ResNet-20 and CIFAR-10, and of memory on larger ones.

python benchmarks/reconstruction_limits.py --data DIR [--iterations 60] [--kills 10] [--memory 160MiB …]
    [--tuning-memory 410MiB] [--larger NAME …] [--json FILE]

DIR holds cifar10/ with the data and resnet20.th. Memory: for each limit a process of its own evaluates the float
network, then quantizes with W2A2 blocks under that limit; how far its peak (VmHWM, which Linux lets be set back) lies
above the evaluation's must keep to the limit, and what comes out must be the same bytes. --tuning-memory: the same of
end-to-end tuning behind a reconstruction, which takes more, for it trains the whole network. --larger: LARGER's rows,
networks with weights of many megabytes (random ones, for memory doesn't depend on them), each under the least limit
that its error states; only those named, or all. Killed: a process is ended (SIGKILL) at a random moment, as often as
asked, and started again with the same --resume folder; the checkpoint that it saves in the end must have the bytes of
a run that nothing disturbed.
"""

import argparse
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torchvision import models

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.data import calibration_loader, make_loader
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, load_model, resolved
from pytorch_quantizer.experiments.resources import parse_bytes

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_inference.py"


class Larger(NamedTuple):
    """A network of torchvision's, images of it, and what its recipe has beside w4a4_qdrop's; 3 iterations a block."""

    arch: str
    size: int
    images: int
    batch: int
    changes: dict[str, Any]


CORRECTED = {"tuning_epochs": 0, "correction_images": 64}
MEASURED = {"mixed_precision": "weights", "mixed_precision_criterion": "measured"}
LARGER = {
    "ResNet-18": Larger("resnet18", 64, 64, 32, {"tuning_epochs": 0}),
    "ResNet-18, tuned": Larger("resnet18", 64, 64, 32, {"tuning_epochs": 1}),
    "ResNet-18, tuned with its weights": Larger(
        "resnet18", 64, 64, 32, {"tuning_epochs": 1, "tuning_weight_rate": 0.003}
    ),
    "ResNet-18, weights by their outputs": Larger(
        "resnet18", 64, 64, 32, {"tuning_epochs": 0, "weight_clip": "output_mse"}
    ),
    "ResNet-18, activations corrected": Larger("resnet18", 64, 64, 32, {**CORRECTED, "activation_correction": "both"}),
    "ResNet-18, measured widths": Larger("resnet18", 64, 64, 32, {**CORRECTED, **MEASURED}),
    "SqueezeNet, second order": Larger("squeezenet1_1", 64, 64, 32, {**CORRECTED, "weight_rounding": "second_order"}),
}


def main() -> None:
    """Measure all, print as they come, write JSON where asked; exit 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--memory", nargs="*", default=["160MiB", "256MiB", "1GiB"])
    parser.add_argument("--tuning-memory", nargs="*", default=["410MiB"])
    parser.add_argument("--larger", nargs="*", default=list(LARGER), choices=list(LARGER), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        memory = [measured_memory(options, text, Path(folder)) for text in options.memory]
        print(f"the same bytes under each limit: {len({row['digest'] for row in memory}) <= 1}")
        tuned = [measured_memory(options, text, Path(folder), tuning_epochs=1) for text in options.tuning_memory]
        larger = [measured_larger(name) for name in options.larger]
        killed = measured_kills(options, Path(folder)) if options.kills else None
    good = all(row["beyond"] <= row["limit"] for row in [*memory, *tuned, *larger])
    good = good and len({row["digest"] for row in memory}) <= 1 and (killed is None or killed["same"])
    if options.json:
        record = {"memory": memory, "tuned": tuned, "larger": larger, "killed": killed, **provenance()}
        write_atomically(options.json, (json.dumps(record, indent=1) + "\n").encode())
    sys.exit(0 if good else 1)


def measured_memory(options: argparse.Namespace, text: str, folder: Path, *, tuning_epochs: int = 0) -> dict[str, Any]:
    """A row: the limit, how far the peak lies above the float network's evaluation, the digest of the checkpoint."""
    output, limit = folder / "memory.safetensors", parse_bytes("--memory", text)
    beyond = in_own_process(
        "quantize_cifar", str(options.data / "cifar10"), options.iterations, tuning_epochs, limit, str(output)
    )
    tell(f"--max-memory {text}{', tuned' if tuning_epochs else ''}", beyond, limit)
    row = {"limit": limit, "beyond": beyond, "digest": digest(output)}
    return row | {"iterations": options.iterations, "tuning_epochs": tuning_epochs}


def measured_larger(name: str) -> dict[str, Any]:
    """A row: the least limit that is accepted, and how far the peak under it lies above the evaluation."""
    limit = 2**20
    while isinstance(found := in_own_process("quantize_larger", name, limit), str):
        limit = int(re.findall(r"at least (\d+) MiB", found)[0]) * 2**20
    tell(f"{name}, --max-memory {limit // 2**20}MiB, the least", found, limit)
    return {"network": name, "limit": limit, "beyond": found}


def tell(what: str, beyond: int, limit: int) -> None:
    """Print a row."""
    verdict = "ok" if beyond <= limit else "MISS"
    print(f"{what}: peak {beyond / 2**20:.0f} MiB above the float network's evaluation: {verdict}", flush=True)


def in_own_process(function: str, *given: Any) -> Any:
    """What a function of this file gives in a fresh process."""
    text = f"import json, reconstruction_limits as r; print(json.dumps(r.{function}(*{list(given)!r})))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return json.loads(done.stdout.splitlines()[-1])


def quantize_cifar(data: str, iterations: int, tuning_epochs: int, limit: int, output: str) -> int:
    """Quantize ResNet-20 in W2A2 and save it; how far the peak lies above the evaluation's."""
    folder = Path(data)
    config = resolved(
        InferenceConfig(dataset="cifar10", data=folder, arch="resnet20", checkpoint=folder / "resnet20.th")
    )
    test, calibration, _ = load_images(config)
    model = load_model(config, test)
    batches = calibration_loader(calibration, 1024, batch_size=128, seed=0)
    loader = make_loader(test, 128, limit=2000)
    recipe = pq.Recipe.load("w2a2_qdrop").replace(reconstruction_iterations=iterations, tuning_epochs=tuning_epochs)

    def quantize() -> None:
        pq.save(pq.quantize(model, recipe, batches, max_memory=limit, progress=False), output)

    return beyond(lambda: pq.evaluate(model, loader, progress=False), quantize)


def quantize_larger(name: str, limit: int) -> int | str:
    """Quantize one of LARGER; how far the peak lies above the evaluation's, or the error."""
    torch.manual_seed(0)
    row = LARGER[name]
    model = models.get_model(row.arch, weights=None).eval()
    batches = torch.randn(row.images, 3, row.size, row.size).split(row.batch)
    recipe = pq.Recipe.load("w4a4_qdrop").replace(reconstruction_iterations=3, **row.changes)
    try:
        return beyond(
            lambda: pq.evaluate(model, [(batch, torch.zeros(len(batch)).long()) for batch in batches], progress=False),
            lambda: pq.quantize(model, recipe, batches, max_memory=limit, progress=False),
        )
    except pq.InputError as error:
        return str(error)


def beyond(evaluate: Callable[[], object], quantize: Callable[[], object]) -> int:
    """By how many bytes the peak of the second lies above that of the first, which is called twice."""
    evaluate()
    peak(reset=True)
    evaluate()
    evaluation = peak()
    quantize()
    return peak() - evaluation


def peak(*, reset: bool = False) -> int:
    """The most memory that this process has had, in bytes. reset: begin anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if "VmHWM" in line) * 1024


def measured_kills(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """How often a run was killed, and whether it saved the bytes of one that nothing disturbed."""
    draw = random.Random(options.seed)
    start = time.perf_counter()
    subprocess.run(command(options, folder / "whole"), check=True, capture_output=True)
    whole = time.perf_counter() - start
    kills = 0
    while True:
        running = subprocess.Popen(
            command(options, folder / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            wait = None if kills >= options.kills else draw.uniform(0.15, 0.6) * whole
            code = running.wait(wait)
            if code:
                raise RuntimeError(f"the resumed run ended with exit code {code}")
            break
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            kills += 1
            done = len(list((folder / "killed" / "resume").glob("block-*")))
            print(f"killed after {wait:.1f} s, {done} blocks finished", flush=True)
    found = [digest(folder / name / "model.safetensors") for name in ("whole", "killed")]
    print(f"killed {kills} times and resumed: same bytes as unbroken: {found[0] == found[1]}", flush=True)
    return {"kills": kills, "same": found[0] == found[1], "seconds_unbroken": whole}


def command(options: argparse.Namespace, folder: Path) -> list[str]:
    """A run that resumes, and saves what comes out."""
    folder.mkdir(exist_ok=True)
    flags = {
        "data": options.data / "cifar10",
        "arch": "resnet20",
        "checkpoint": options.data / "cifar10" / "resnet20.th",
        "recipe": "w2a2_qdrop",
        "reconstruction-iterations": options.iterations,
        "tuning-epochs": 0,
        "limit": 100,
        "resume": folder / "resume",
        "save": folder / "model.safetensors",
        "output": folder / "report",
    }
    return [sys.executable, str(SCRIPT), *(str(part) for name, value in flags.items() for part in (f"--{name}", value))]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

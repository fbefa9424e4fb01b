"""What reconstruction promises of memory and of being killed, on ResNet-20 and CIFAR-10.

python benchmarks/reconstruction_limits.py --data DIR [--iterations 60] [--kills 10] [--memory 160MiB …]
    [--tuning-memory 410MiB] [--json FILE]

DIR holds cifar10/ with the data and resnet20.th. Memory: for each limit a process of its own evaluates the float
network, then quantizes with W2A2 blocks under that limit; how far its peak (VmHWM, which Linux lets be set back) lies
above the evaluation's must keep to the limit, and what comes out must be the same bytes. --tuning-memory: the same of
end-to-end tuning behind a reconstruction, which takes more, for it trains the whole network. Killed: a process is ended
(SIGKILL) at a random moment, as often as asked, and started again with the same --resume folder; the checkpoint that it
saves in the end must have the bytes of a run that nothing disturbed.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.experiments.resources import parse_bytes

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_inference.py"
MEASURED = """
import json, sys
import torch
from pathlib import Path
import pytorch_quantizer as pq
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, load_model, resolved
from pytorch_quantizer.data import calibration_loader, make_loader

def peak(reset=False):
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l) * 1024

options = json.loads(sys.argv[1])
config = resolved(InferenceConfig(dataset="cifar10", data=Path(options["data"]), arch="resnet20",
                                  checkpoint=Path(options["checkpoint"])))
test, calibration, _ = load_images(config)
model = load_model(config, test)
batches = calibration_loader(calibration, 1024, batch_size=128, seed=0)
pq.evaluate(model, make_loader(test, 128, limit=2000), progress=False)
before = peak(reset=True)
pq.evaluate(model, make_loader(test, 128, limit=2000), progress=False)
evaluation = peak()
recipe = pq.Recipe.load("w2a2_qdrop").replace(reconstruction_iterations=options["iterations"],
                                               tuning_epochs=options["tuning_epochs"])
quantized = pq.quantize(model, recipe, batches, max_memory=options["memory"], progress=False)
pq.save(quantized, options["output"])
print(json.dumps({"evaluation": evaluation, "peak": peak()}))
"""


def main() -> None:
    """Measure both, print as they come, write JSON where asked; exit 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--memory", nargs="*", default=["160MiB", "256MiB", "1GiB"])
    parser.add_argument("--tuning-memory", nargs="*", default=["410MiB"])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        memory = [measured_memory(options, text, Path(folder)) for text in options.memory]
        print(f"the same bytes under each limit: {len({row['digest'] for row in memory}) <= 1}")
        tuned = [measured_memory(options, text, Path(folder), tuning_epochs=1) for text in options.tuning_memory]
        killed = measured_kills(options, Path(folder)) if options.kills else None
    good = (
        all(row["beyond"] <= row["limit"] for row in [*memory, *tuned]) and len({row["digest"] for row in memory}) <= 1
    )
    good = good and (killed is None or killed["same"])
    if options.json:
        record = {"memory": memory, "tuned": tuned, "killed": killed, **provenance()}
        write_atomically(options.json, (json.dumps(record, indent=1) + "\n").encode())
    sys.exit(0 if good else 1)


def measured_memory(options: argparse.Namespace, text: str, folder: Path, *, tuning_epochs: int = 0) -> dict[str, Any]:
    """A row: the limit, how far the peak lies above the float network's evaluation, the digest of the checkpoint."""
    output = folder / "memory.safetensors"
    given = {"data": str(options.data / "cifar10"), "checkpoint": str(options.data / "cifar10" / "resnet20.th")}
    given |= {"iterations": options.iterations, "memory": parse_bytes("--memory", text), "output": str(output)}
    given["tuning_epochs"] = tuning_epochs
    command = [sys.executable, "-c", MEASURED, json.dumps(given)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    beyond = found["peak"] - found["evaluation"]
    verdict = "ok" if beyond <= given["memory"] else "MISS"
    print(
        f"--max-memory {text}{', tuned' if tuning_epochs else ''}: peak {beyond / 2**20:.0f} MiB above the float "
        f"network's evaluation: {verdict}",
        flush=True,
    )
    found = {"limit": given["memory"], "beyond": beyond, "digest": digest(output)}
    return found | {"iterations": options.iterations, "tuning_epochs": tuning_epochs}


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

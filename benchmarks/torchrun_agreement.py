"""One evaluation by several processes: the CIFAR-10 test set counted and calibrated as one process does it.

python benchmarks/torchrun_agreement.py --data ../shared/data [--processes 1 2 3 4] [--recipe w8a4_aciq] [--json FILE]

DATA holds cifar10/ with the images and resnet20.th. Each number of processes runs scripts/run_inference.py under
torchrun, a thread each; counts by class, both networks' rates, every range and every tensor's figures must be the same
as those of one process. The seconds are those of quantizing and evaluating with start-up and timing; they say nothing
of the speed-up where there are fewer cores than processes.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pytorch_quantizer.atomic import require_writable, write_atomically
from pytorch_quantizer.environment import provenance

SCRIPT = Path(__file__).parents[1] / "scripts" / "run_inference.py"


def main() -> None:
    """Run each number of processes, compare with the first, print as they come; exit 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--recipe", default="w8a4_aciq")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.json:
        require_writable(options.json)
    rows: list[dict[str, Any]] = []
    for count in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            seconds = start(options, count, Path(folder))
            found = numbers(Path(folder))
        same = not rows or all(found[name] == rows[0][name] for name in found)
        rows.append({"processes": count, **found, "same": same, "seconds": round(seconds, 1)})
        print(
            f"{count} processes: {found['correct']} of {found['samples']} right, float32 {found['fp32_correct']}, "
            f"ranges {found['ranges'][:12]}, counts by class {found['answers'][:12]}, {seconds:.0f} s: "
            f"{'the same' if same else 'DIFFERENT'}",
            flush=True,
        )
    if options.json:
        text = json.dumps({**provenance(), "recipe": options.recipe, "rows": rows}, indent=1)
        write_atomically(options.json, f"{text}\n".encode())
    sys.exit(0 if all(row["same"] for row in rows) else 1)


def start(options: argparse.Namespace, count: int, folder: Path) -> float:
    """Run the job in so many processes; its seconds."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    cifar = options.data / "cifar10"
    flags = {"data": cifar, "arch": "resnet20", "checkpoint": cifar / "resnet20.th", "recipe": options.recipe}
    flags |= {"device": "cpu", "output": folder}
    given = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    begin = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *torchrun, str(SCRIPT), *given], check=True, capture_output=True, env=environment)
    return time.perf_counter() - begin


def numbers(folder: Path) -> dict[str, Any]:
    """What must not depend on the number of processes; of large things the digest."""
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    details = json.loads((folder / "details.json").read_text(encoding="utf-8"))
    samples = record["samples"]
    return {
        "samples": samples,
        "correct": round(record["quantized"]["top1"] * samples),
        "fp32_correct": round(record["fp32"]["top1"] * samples),
        "agreement": record["quantized"]["agreement"],
        "answers": digest(details["answers"]),
        "ranges": digest([details["batches"], (folder / "layers.csv").read_text(encoding="utf-8")]),
    }


def digest(values: Any) -> str:
    """SHA-256 of values as JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    main()

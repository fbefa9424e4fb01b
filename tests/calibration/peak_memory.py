"""Networks quantized under the least limit that errors state, each in a process of its own that tells what it took.

python peak_memory.py prints a line a case: its name, the limit and how far the peak lies above evaluating the float
network, in MiB. Before them "freed: A B", what 64 MiB of freed tensors left behind, A as glibc has it, B given back.
"""

import multiprocessing
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import pytorch_quantizer as pq
from pytorch_quantizer.calibration.memory import large_tensors_given_back


class Case(NamedTuple):
    """A network, what its recipe has beside RECIPE's, and the batches that it is calibrated on."""

    net: nn.Module
    changes: dict[str, Any]
    batches: list[Tensor]


class Parallel(nn.Module):
    """Many branches that are all held until they are added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)
        self.branches = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        found = [branch(x).relu() for branch in self.branches]
        total = found[0]
        for part in found[1:]:
            total = total + part
        return self.last(total.mean((2, 3)))


def plain(depth: int, channels: int, inputs: int = 3) -> nn.Module:
    """Convolutions one behind another."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
    for _ in range(1, depth):
        layers += [nn.Conv2d(channels, channels, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def scarce() -> nn.Module:
    """A layer of many inputs, so that windows of it outweigh all else."""
    layers = [nn.Conv2d(3, 64, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(64, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 1))


def upsampling() -> nn.Module:
    """A transposed convolution, of whose input sixteen times as much is made."""
    layers = [nn.Conv2d(3, 32, 3, padding=1, stride=2), nn.ReLU(), nn.ConvTranspose2d(32, 4, 2, stride=4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Conv2d(4, 4, 1))


def heavy() -> nn.Module:
    """Layers whose weights outweigh all that they compute."""
    layers = [nn.Flatten(), nn.Linear(3 * 32 * 32, 2048), nn.ReLU(), nn.Linear(2048, 1024), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, 10))


RECIPE = pq.Recipe(
    weights="int4",
    activations="int4",
    reconstruction="block",
    reconstruction_iterations=3,
    reconstruction_batch=4,
    reconstruction_images=64,
)
CORRECTED = {"activation_correction": "both", "correction_images": 64}
WEIGHTS_TUNED = {"reconstruction": "none", "tuning_epochs": 2, "tuning_batch": 16, "tuning_weight_rate": 0.003}
MEASURED = {"mixed_precision": "weights", "mixed_precision_criterion": "measured", "correction_images": 4}
CASES = {
    "blocks": lambda: Case(plain(8, 32), {"reconstruction_batch": 32}, batches(32, 32, 64)),
    "tuning": lambda: Case(plain(8, 32), {"tuning_epochs": 1, "tuning_batch": 16}, batches(32, 32, 48)),
    "tuning weights": lambda: Case(heavy(), WEIGHTS_TUNED, batches(32, 16, 32)),
    "corrections": lambda: Case(Parallel(), CORRECTED, batches(32, 16, 48)),
    "second order": lambda: Case(scarce(), {"weight_rounding": "second_order"}, batches(32, 32, 64)),
    "transposed": lambda: Case(upsampling(), {"weight_rounding": "second_order"}, batches(32, 32, 64)),
    "widths": lambda: Case(plain(34, 8), MEASURED, batches(8, 4, 8)),
}


def batches(count: int, size: int, pixels: int) -> list[Tensor]:
    """So many images, of three channels."""
    return list(torch.randn(count, 3, pixels, pixels, generator=torch.Generator().manual_seed(0)).split(size))


def peak(*, reset: bool = False) -> int:
    """The most memory that this process has had, in bytes. reset: begin anew."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def tell_freed() -> None:
    """Free tensors with smaller ones between them, with and without a limit."""
    torch.ones(2**23 - 2**12)  # 32 MiB: from now on glibc keeps what is smaller
    left = []
    for limit in (None, 64 * 2**20):
        before = resident()
        with large_tensors_given_back(limit):
            pairs = [(torch.ones(2**19), torch.ones(2**15)) for _ in range(32)]
            small = [second for _, second in pairs]
            del pairs
            left.append(resident() - before)
        del small
    print("freed:", *(size // 2**20 for size in left), flush=True)


def resident() -> int:
    """What this process has of the memory, in bytes."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def tell(name: str) -> None:
    """Raise the limit to what errors state until there is none; print what was measured."""
    torch.manual_seed(0)
    case, limit = CASES[name](), 1
    case.net.eval()
    with torch.no_grad():
        for _ in range(2):
            peak(reset=True)
            for batch in case.batches:
                case.net(batch)
    before = peak()
    while stated := least_limit(case, limit * 2**20):
        limit = max(stated, limit + 1)
    print(f"{name}: {limit} {(peak() - before) // 2**20}", flush=True)


def least_limit(case: Case, limit: int) -> int | None:
    """Quantize under a limit; the MiB that the error states, None where there is none."""
    try:
        pq.quantize(case.net, RECIPE.replace(**case.changes), case.batches, max_memory=limit, progress=False)
    except pq.InputError as error:
        return int(re.findall(r"at least (\d+) MiB", str(error))[0])
    return None


if __name__ == "__main__":
    torch.set_num_threads(1)
    for job, given in [(tell_freed, []), *((tell, [case_name]) for case_name in CASES)]:
        process = multiprocessing.get_context("fork").Process(target=job, args=given)
        process.start()
        process.join()

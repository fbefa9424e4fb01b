"""Damage 10,000 packed checkpoints by chance, make 4,000 on purpose, and load them all: what becomes of each.

python benchmarks/damaged_checkpoints.py [--files 10000] [--made 4000] [--networks convolutions attention …]

By chance: bits flipped, the file cut, bytes overwritten, moved or taken from another file, a header that lies. Each
must end in one InputError, or give the same model to the bit. On purpose: values of the description, or whole tensors,
are replaced by what nobody expects, and the checksum is computed anew; each must end in one InputError or be a model.
No crash, no hang, no more memory than ROOM. One process a network; the seeds are fixed. Writes
benchmarks/results/damaged_checkpoints.json.
"""

import argparse
import copy
import faulthandler
import json
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn
from tqdm import tqdm

import pytorch_quantizer as pq
from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.environment import provenance
from pytorch_quantizer.export import checkpoint
from pytorch_quantizer.models import create_model

RESULTS = Path(__file__).parent / "results" / "damaged_checkpoints.json"
LIMIT = 20.0  # seconds a file: what takes longer hangs, and ends its process
ROOM = 2**30  # bytes of address space that loading may take beside what the process has
FAILURES = ("another model", "another error", "several lines", "out of memory", "crash or hang")


class Attention(nn.Module):
    """Attention over 16 tokens, a layer norm, a GELU and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, 4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.gelu, self.head = nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, 16, 16] -> [N, 5]."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return self.head(self.gelu(tokens).mean(1))


def convolutions() -> nn.Module:
    """Two convolutions, a batch norm that is folded, and a linear layer."""
    first = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.SiLU())
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def perceptron() -> nn.Module:
    """A plain MLP."""
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.ReLU(), nn.Linear(16, 5))


SIMULATED = {"deployable": False}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "convolutions": (convolutions, {"weights": "int4", "activations": "int8"}),
    "residual": (lambda: create_model("resnet20"), {"weights": "int2", "activations": "int4"}),
    "perceptron": (perceptron, {"weights": "int16", "activations": "int16"}),
    "attention": (Attention, {"weights": "int3", "activations": "int8"}),
    "codebooks": (convolutions, {"weights": "kmeans3", "activations": "int8", **SIMULATED}),
    "blocks": (convolutions, {"weights": "mxfp4", "activations": "mxfp8_e4m3", **SIMULATED}),
    "allocated": (convolutions, {"weights": "int3", "weight_allocation": "bits", **SIMULATED}),
    "online": (convolutions, {"weights": "apot4", "activations": "int4", "statistics": "online", **SIMULATED}),
}


def main() -> None:
    """Run the networks, each in a process of its own, print what became of the files, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="damaged by chance")
    parser.add_argument("--made", type=int, default=4_000, help="made on purpose")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--one", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(damage_one(options.one, options.files, options.made)))
        return
    share = len(options.networks)
    rows = [damage_apart(name, options.files // share, options.made // share) for name in tqdm(options.networks)]
    failed = sum(count for row in rows for count in counted(row, FAILURES).values())
    text = json.dumps({**provenance(), "files": options.files, "made": options.made, "failed": failed, "rows": rows})
    write_atomically(RESULTS, f"{text}\n".encode())
    print(report(rows))
    sys.exit(bool(failed))


def damage_apart(name: str, files: int, made: int) -> dict[str, Any]:
    """One network in a process of its own; whatever ends that is a failure with the seed that did it."""
    command = [sys.executable, __file__, "--one", name, "--files", str(files), "--made", str(made)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = [line for line in done.stderr.splitlines() if line.startswith("seed")][-1:] or ["no seed"]
    found = {"network": name, "outcomes": {last[0]: {"crash or hang": 1}}, "failures": last}
    return {**found, "slowest": LIMIT, "memory": 0}


def damage_one(name: str, files: int, made: int) -> dict[str, Any]:
    """Make the network's file, damage it so many times, load each, and count what became of them by kind."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    build, fields = NETWORKS[name]
    model = pq.quantize(build().eval(), pq.Recipe(**fields), torch.randn(8, 3, 16, 16), progress=False)
    outcomes: dict[str, Counter[str]] = {}
    failures, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        pq.save(model, path)
        whole, other = path.read_bytes(), other_file(path)
        if attempt(path, whole) != "the same model":  # nor is what the first load imports a damaged one's
            raise RuntimeError(f"the sound file of {name} doesn't load by itself")
        bound_memory()
        before = peak()
        for index in range(files + made):
            draw = random.Random(f"{name} {index}")
            kind, data = by_chance(whole, other, draw) if index < files else on_purpose(whole, draw)
            print(f"seed {name} {index} ({kind})", file=sys.stderr)
            path.write_bytes(data)
            start = time.perf_counter()
            outcome = attempt(path, whole if index < files else None)
            slowest = max(slowest, time.perf_counter() - start)
            outcomes.setdefault(kind, Counter())[outcome] += 1
            failures += [f"{index} {outcome}"] if outcome in FAILURES else []
    found = {"network": name, "outcomes": outcomes, "failures": failures}
    return {**found, "slowest": round(slowest, 3), "memory": peak() - before}


def attempt(path: Path, whole: bytes | None) -> str:
    """What became of a file: refused, the same, or a model; else a failure. whole: the sound file's bytes."""
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    try:
        loaded = pq.load(path)
    except pq.InputError as error:
        if isinstance(error.__cause__, MemoryError) or "allocate memory" in str(error.__cause__):
            return "out of memory"
        return "refused" if "\n" not in str(error) and str(path) in str(error) else "several lines"
    except Exception as error:  # the very thing that must not be
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return "another error"
    finally:
        faulthandler.cancel_dump_traceback_later()
    if whole is None:
        return "a model"
    again = path.with_suffix(".again")
    pq.save(loaded, again)
    return "the same model" if again.read_bytes() == whole else "another model"


def bound_memory() -> None:
    """Let this process have ROOM more of address space than it has now, and no core dumps."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def peak() -> int:
    """The most memory that this process has held so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def other_file(path: Path) -> bytes:
    """Another model's sound file."""
    model = pq.quantize(perceptron(), "w8a8", torch.randn(8, 3, 16, 16), progress=False)
    pq.save(model, path.with_name("other.safetensors"))
    return path.with_name("other.safetensors").read_bytes()


# --- damage by chance ------------------------------------------------------------------------------------------------


def by_chance(whole: bytes, other: bytes, draw: random.Random) -> tuple[str, bytes]:
    """The kind of damage, and the bytes; never those of the sound file."""
    kind = draw.choice(list(CHANCE))
    while (data := CHANCE[kind](whole, other, draw)) == whole:
        pass
    return kind, data


def flipped(whole: bytes, _: bytes, draw: random.Random) -> bytes:
    """One to eight bits, half of the time in the header, which is small."""
    data, end = bytearray(whole), draw.choice([len(whole), 8 + header_length(whole)])
    for _ in range(draw.randrange(1, 9)):
        data[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(data)


def cut(whole: bytes, _: bytes, draw: random.Random) -> bytes:
    """The end is missing, or there is something after it."""
    at = draw.randrange(len(whole))
    return whole[:at] if draw.random() < 0.8 else whole + draw.randbytes(at % 4096 + 1)


def overwritten(whole: bytes, _: bytes, draw: random.Random) -> bytes:
    """A run of bytes becomes another, as long or not."""
    at, length = draw.randrange(len(whole)), draw.randrange(1, 64)
    filling = draw.choice([draw.randbytes(length), bytes(length), draw.randbytes(draw.randrange(64))])
    return whole[:at] + filling + whole[at + length :]


def moved(whole: bytes, _: bytes, draw: random.Random) -> bytes:
    """Two runs of bytes have changed places."""
    first, second, third, last = sorted(draw.randrange(len(whole)) for _ in range(4))
    return whole[:first] + whole[third:last] + whole[second:third] + whole[first:second] + whole[last:]


def spliced(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    """The beginning of one file and the end of another."""
    at = draw.randrange(min(len(whole), len(other)))
    return draw.choice([whole[:at] + other[at:], other[:at] + whole[at:]])


def length_lies(whole: bytes, _: bytes, draw: random.Random) -> bytes:
    """The header's length is another."""
    lengths = [0, 1, 2, header_length(whole) - 1, header_length(whole) + 1, len(whole), 2**27, 2**31, 2**63, 2**64 - 1]
    return struct.pack("<Q", draw.choice([*lengths, draw.getrandbits(64)])) + whole[8:]


def header_lies(whole: bytes, _: bytes, draw: random.Random) -> bytes:
    """A value of the header is one that nobody expects; what follows is as it was."""
    length = header_length(whole)
    header = json.loads(whole[8 : 8 + length])
    spoil(header, draw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


def header_length(whole: bytes) -> int:
    """Bytes of the header of a safetensors file."""
    return int(struct.unpack("<Q", whole[:8])[0])


CHANCE = {
    **{"flipped": flipped, "cut": cut, "overwritten": overwritten, "moved": moved, "spliced": spliced},
    **{"length lies": length_lies, "header lies": header_lies},
}


# --- made on purpose -------------------------------------------------------------------------------------------------

NASTY: list[Any] = [
    *(None, True, False, -1, 0, 1, 3, 17, 2**31, 2**40, 2**63, 2**64, 10**30, 0.5, -0.5, 1e308, 1e-320),
    *("", "x", "self", "__class__", "body.0", "a.b.c", "torch.load", "numpy", "float32", "\n", "\x00", "x" * 5000),
    *([], {}, [[]], [None], {"tuple": []}, {"node": "x"}, {"node": 3}, {"float": "nan"}, {"dtype": "load"}),
    *({"slice": [0]}, {"dict": [[[], 1]]}, {"a": 1, "b": 2}, [2**40, 2**40], [-1, -1], {"ellipsis": 0}),
]


def on_purpose(whole: bytes, draw: random.Random) -> tuple[str, bytes]:
    """A file whose checksum fits what it holds: one to three changes to its description or to its tensors."""
    tensors = load(whole)
    kind = draw.choice(["description", "tensors"])
    content = checkpoint._unzipped(tensors.pop(checkpoint.DESCRIPTION))
    for _ in range(draw.randrange(1, 4)):
        if kind == "description":
            spoil(content, draw)
        else:
            spoil_tensor(tensors, draw)
    packed = zlib.compress(json.dumps(content).encode())
    tensors[checkpoint.DESCRIPTION] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    said = json.dumps({"version": checkpoint.VERSION, "checksum": checkpoint._checksum(tensors)})
    return f"{kind} made", save(tensors, {checkpoint.KEY: said})


def spoil(tree: Any, draw: random.Random) -> None:
    """Change one entry somewhere in a tree of lists and objects: another value, gone, doubled, or another's."""
    places = list(entries(tree))
    owner, key = draw.choice(places)
    what = draw.randrange(6)
    if what == 0:
        del owner[key]
    elif what == 1 and isinstance(owner, list):
        owner.insert(key, copy.deepcopy(owner[key]))
    elif what == 2:
        source, name = draw.choice(places)
        owner[key] = copy.deepcopy(source[name])
    else:
        owner[key] = copy.deepcopy(draw.choice(NASTY))


def entries(tree: Any) -> Any:
    """Every (list or object, index or key) of a tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from entries(tree[key])


def spoil_tensor(tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    """Change one tensor: its values, shape, dtype or name; or it is gone."""
    name = draw.choice(list(tensors))
    tensor = tensors.pop(name)
    values = [float("nan"), float("inf"), -1.0, 0.0, 1e-45, 3e38]
    flat = tensor.reshape(-1)
    changed = [
        *(None, torch.zeros(0, dtype=tensor.dtype), flat[:-1].clone(), torch.cat([flat, flat]), tensor.double()),
        *(flat.clone(), tensor[None].clone(), torch.zeros(2**31, 0), tensor.to(torch.uint8), tensor.to(torch.float16)),
        *(torch.full(tensor.shape, value).to(tensor.dtype) for value in values),
    ]
    spoiled = draw.choice(changed)
    if spoiled is not None:
        tensors[draw.choice([name, name, name, f"{name}x", draw.choice(list(tensors) or [name])])] = spoiled


# --- what became of them ---------------------------------------------------------------------------------------------


def counted(row: dict[str, Any], wanted: tuple[str, ...] | None = None) -> dict[str, int]:
    """Files of a network by outcome."""
    found: Counter[str] = Counter()
    for outcomes in row["outcomes"].values():
        found.update({name: count for name, count in outcomes.items() if wanted is None or name in wanted})
    return dict(found)


def report(rows: list[dict[str, Any]]) -> str:
    """A line a kind of damage, over all networks, and the worst of time and memory."""
    kinds: dict[str, Counter[str]] = {}
    for row in rows:
        for kind, outcomes in row["outcomes"].items():
            kinds.setdefault(kind, Counter()).update(outcomes)
    lines = [f"{kind:<18} {sum(found.values()):>6}   {_said(found)}" for kind, found in sorted(kinds.items())]
    total = sum(map(sum, (found.values() for found in kinds.values())))
    failed = sum(count for found in kinds.values() for name, count in found.items() if name in FAILURES)
    slowest, memory = max(row["slowest"] for row in rows), max(row["memory"] for row in rows)
    lines += [f"{total} files of {len(rows)} networks: {failed} failed; the slowest took {slowest:.2f} s,"]
    return "\n".join([*lines, f"the largest took {memory / 2**20:.0f} MiB beside what the process held"])


def _said(found: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.most_common())


if __name__ == "__main__":
    main()

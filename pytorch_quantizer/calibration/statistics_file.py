"""Statistics kept in a file that anyone can read, JSON, and those of several runs merged.
How they are collected is calibrate.py's business, what is concluded from them fit.py's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, fx

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.calibration.calibrate import Statistics, device_of, wanted_statistics
from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.graph.site import Site
from pytorch_quantizer.quantization.statistics import MOMENTS, TensorStatistics

FORMAT, VERSION = "pytorch_quantizer statistics", 2
FIELDS = ("format", "version", "library", "model", "images", "digest", "tensors")
COUNTS = ("count", "positive_count", "batches")
DIGEST_BYTES = 16
FINITE = "its moments must be finite"
ROUND_OFF = 1e-9  # of sums of many numbers
SHOWN = 8  # digits of a fingerprint, for people
REMEDY = "collect the statistics again"


def save_statistics(
    path: str | Path, statistics: Mapping[str, TensorStatistics], graph: fx.GraphModule, images: int | None = None
) -> None:
    """Write statistics, whole or not at all: a header, then a line a tensor (TensorStatistics.to_dict).

    graph: the folded float network that they were collected on. images: on how many, where that is known. Every float
    survives exactly. Raises InputError where the file can't be written, and for NaN and infinite values.
    """
    _write(path, statistics, fingerprint(graph), images)


def load_statistics(path: str | Path, graph: fx.GraphModule | None = None) -> Statistics:
    """What ``save_statistics`` wrote, in the same order, on the graph's device (the CPU without one).

    graph: the folded float network that is to be quantized; the file must be of the very same. Raises InputError, with
    the path, for statistics of another network or other weights, and for a file that is missing, cut off or corrupt.
    """
    content = _read(path)
    if graph is not None:
        _check_model(path, content["model"], "this model is", fingerprint(graph))
    device = torch.device("cpu") if graph is None else device_of(graph)
    return {key: record.to(device) for key, record in _records(path, content).items()}


def known_statistics(path: str | Path | None, graph: fx.GraphModule, sites: tuple[Site, ...]) -> Statistics | None:
    """What a statistics file holds, None where there is none yet. Raises InputError where the sites need more."""
    if path is not None and not wanted_statistics(sites):
        raise InputError(f"statistics_file {path}: with this recipe calibration observes no activation; leave it out")
    if path is None or not Path(path).exists():
        return None
    known = load_statistics(path, graph)
    for key, wanted in wanted_statistics(sites).items():
        if key not in known or (wanted.histogram and known[key].histogram is None):
            what = "statistics" if key not in known else "histogram"
            raise InputError(f"{path} holds no {what} of {key}, which this recipe needs: give another file to collect")
    return known


def counted_images(path: str | Path) -> int | None:
    """On how many images a statistics file was collected, where it says. Raises InputError as load_statistics does."""
    images: int | None = _read(path)["images"]
    return images


def merge_statistics(*runs: Mapping[str, TensorStatistics] | str | Path) -> Statistics:
    """The statistics of several runs as those of one, merged in the order given (TensorStatistics.merge).

    runs: statistics or paths of files. Raises InputError where there is none, where files are of different models, and
    where runs hold different tensors or channels.
    """
    return _merged([_read_run(run) if isinstance(run, str | Path) else _Run(_checked(run)) for run in runs])


def merge_statistics_files(path: str | Path, *files: str | Path) -> None:
    """Write one file from those of several runs of a model: what a run over the images of them all would have written.

    Merged in the order given, on as many images as they say together. Raises InputError as merge_statistics does, and
    where the file can't be written.
    """
    runs = [_read_run(file) for file in files]
    merged, counts = _merged(runs), [run.images for run in runs]
    _write(path, merged, runs[0].model, None if None in counts else sum(count or 0 for count in counts))


def fingerprint(graph: fx.GraphModule) -> str:
    """A hash, in hexadecimal, of what a network computes: its operations in order, and every parameter and buffer.

    Raises InputError for a network that isn't a captured one.
    """
    if not isinstance(graph, fx.GraphModule):
        raise InputError(
            "statistics belong to a folded float network, pq.fold(pq.capture(model, images))[0]; "
            f"got {type(graph).__name__}"
        )
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for node in graph.graph.nodes:
        digest.update(_described(graph, node).encode())
    tensors = {**dict(graph.named_parameters()), **dict(graph.named_buffers())}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(_bytes_of(tensor)))
    return digest.hexdigest()


def _described(graph: fx.GraphModule, node: fx.Node) -> str:
    """One operation in a line: its node's name, what it calls with which settings, and what it reads."""
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    module = repr(graph.get_submodule(str(node.target))) if node.op == "call_module" else ""
    line = f"{node.name} {node.op} {called} {module} {node.args} {sorted(node.kwargs.items())}\n"
    return re.sub(r" at 0x[0-9a-f]+", "", line)  # where a function happens to lie in memory


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _check_model(path: str | Path, found: str, whose: str, wanted: str) -> None:
    if found != wanted:
        raise InputError(
            f"{path} holds statistics of another model or of other weights, such as equalize gives: it is of "
            f"{found[:SHOWN]}, {whose} {wanted[:SHOWN]}; {REMEDY} on this one, or load the weights that they were "
            "collected on"
        )


class _Run(NamedTuple):
    """What one run saw; path, model and images where it comes from a file."""

    statistics: Statistics
    path: str | Path | None = None
    model: str = ""
    images: int | None = None


def _checked(run: Any) -> Statistics:
    if not isinstance(run, Mapping) or not all(isinstance(record, TensorStatistics) for record in run.values()):
        raise InputError(f"a run must be a table of TensorStatistics, or a file's path, got {type(run).__name__}")
    return dict(run)


def _read_run(path: str | Path) -> _Run:
    content = _read(path)
    return _Run(_records(path, content), path, content["model"], content["images"])


def _merged(runs: list[_Run]) -> Statistics:
    if not runs:
        raise InputError("no statistics to merge; give at least one run")
    files = [run for run in runs if run.path is not None]
    for run in files[1:]:
        _check_model(str(run.path), run.model, f"{files[0].path} is", files[0].model)
    loaded = [run.statistics for run in runs]
    for index, other in enumerate(loaded[1:], 2):
        _check_alike(loaded[0], other, index)
    return {key: TensorStatistics.merged(one[key] for one in loaded) for key in loaded[0]}


def _write(path: str | Path, statistics: Mapping[str, TensorStatistics], model: str, images: int | None) -> None:
    for key, record in statistics.items():
        if _broken_law(record) == FINITE:
            raise InputError(f"{key} holds NaN or infinite values; {path} is not written")
    tensors = {key: record.to_dict() for key, record in statistics.items()}
    header = {"format": FORMAT, "version": VERSION, "library": version("pytorch-quantizer"), "model": model}
    header |= {"images": images, "digest": _digest(model, images, tensors)}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in header.items()]
    rows = [f"{json.dumps(key)}: {json.dumps(entry, allow_nan=False)}" for key, entry in tensors.items()]
    text = "{\n" + ",\n".join([*lines, '"tensors": {\n' + ",\n".join(rows) + "\n}"]) + "\n}\n"
    write_atomically(path, text.encode())


def _digest(model: str, images: int | None, tensors: dict[str, Any]) -> str:
    """A hash, in hexadecimal, of the numbers in a file: how it is laid out has no part in it."""
    text = json.dumps([model, images, tensors], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()


def _check_alike(first: Statistics, other: Statistics, index: int) -> None:
    """Raise InputError that names the first tensor in which two runs differ."""
    odd = sorted(first.keys() ^ other.keys())
    if odd:
        where = "the first run" if odd[0] in first else f"run {index}"
        raise InputError(f"runs must hold the same tensors to be merged; {odd[0]!r} is only in {where}")
    for key, record in first.items():
        shapes = list(record.count.shape), list(other[key].count.shape)
        if shapes[0] != shapes[1]:
            raise InputError(
                f"runs must hold the same channels to be merged; {key!r} has {shapes[0]} in the first run and "
                f"{shapes[1]} in run {index}"
            )


def _read(path: str | Path) -> dict[str, Any]:
    """The file's content, its header checked."""
    try:
        content = json.loads(Path(path).read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror or error}; give the path of a statistics file") from error
    except (ValueError, RecursionError) as error:
        _refuse(path, f"it is not JSON, or cut off ({first_line(error)})")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        _refuse(path, f"it has no format: {FORMAT!r}")
    if content.get("version") != VERSION or isinstance(content["version"], bool):
        shown = content.get("version")
        raise InputError(f"{path}: version must be {VERSION}, got {shown!r}; {REMEDY}, or update pytorch_quantizer")
    if sorted(content) != sorted(FIELDS):
        odd = sorted(set(content) ^ set(FIELDS))
        _refuse(path, f"it must hold {', '.join(FIELDS)}; missing or unknown: {', '.join(odd)}")
    _check_header(path, content)
    return content


def _check_header(path: str | Path, content: dict[str, Any]) -> None:
    for name in ("library", "model", "digest"):
        if not isinstance(content[name], str):
            _refuse(path, f"{name} must be text, got {content[name]!r}")
    images = content["images"]
    if images is not None and (not isinstance(images, int) or isinstance(images, bool) or images < 1):
        _refuse(path, f"images must be a positive number or null, got {images!r}")
    if not isinstance(content["tensors"], dict):
        _refuse(path, f"tensors must be a table of tensors by name, got {type(content['tensors']).__name__}")


def _records(path: str | Path, content: dict[str, Any]) -> Statistics:
    """By name; what is checked is each tensor, then whether these are the numbers that were written."""
    records = {key: _record(path, key, entry) for key, entry in content["tensors"].items()}
    if _digest(content["model"], content["images"], content["tensors"]) != content["digest"]:
        _refuse(path, "its numbers aren't those that were written (digest): it was damaged or edited")
    return records


def _record(path: str | Path, key: str, entry: Any) -> TensorStatistics:
    """One tensor's statistics, checked."""
    try:
        record = TensorStatistics.from_dict(entry)
    except InputError as error:
        _refuse(path, f"{key}: {error}")
    for name in COUNTS:
        counts = getattr(record, name)
        if not bool(torch.all(torch.isfinite(counts) & (counts == counts.round()))):
            _refuse(path, f"{key}: {name} must be a whole number, got {entry[name]!r}")
    broken = _broken_law(record)
    if broken:
        _refuse(path, f"{key}: {broken}")
    return record


def _broken_law(record: TensorStatistics) -> str | None:
    """The first law that no tensor's statistics break and these do, None where there is none."""
    seen, histogram = record.count > 0, record.histogram
    slack = ROUND_OFF * torch.where(seen, torch.maximum(record.min.abs(), record.max.abs()), 0.0)
    low, high = record.min - slack, record.max + slack
    numbers = [getattr(record, name) for name in MOMENTS if name not in ("min", "max")]
    counted = record.count if histogram is None else histogram.counts.sum(-1) + histogram.zeros
    laws = {
        FINITE: torch.stack(numbers).isfinite().all(0) & (~seen | (high - low).isfinite()),
        "count must be that of its histogram": counted == record.count,
        "positive_count must be at most count": record.positive_count <= record.count,
        "mean must lie between min and max": ~seen | ((low <= record.mean) & (record.mean <= high)),
        "abs_dev must be at most the root of the variance": record.abs_dev <= record.variance.sqrt() + slack,
    }
    return next((law for law, holds in laws.items() if not bool(holds.all())), None)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _refuse(path: str | Path, why: str) -> NoReturn:
    raise InputError(f"{path} is no sound statistics file: {why}; {REMEDY}")

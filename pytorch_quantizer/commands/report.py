"""One HTML file that shows what was measured: opens offline, with charts to hover over, zoom and select in.

  pq report results/digits_resnet20_w8a4_aciq
      a folder of `pq run`: noise of each tensor, histograms over grids, classes that suffer, latency and size, origin

  pq report results/sweep_cifar10 results/leaderboard_cifar10 --output report.html
      results.csv of a sweep and a leaderboard.csv, or their folders, on one page: accuracy against size and bits

  pq report results/digits_resnet20_w8a4_aciq results/sensitivity_digits_resnet20_w8a4_aciq
      a run beside its diagnosis: a layer selected in one is marked in the other

  pq report digits.safetensors
      a quantized model (pq.save, `pq run --save`) measured anew on images; for another than the bundled network:
      --data DIR --arch ARCH --checkpoint FILE, the float network that it was made from

  pq report results/* --detail cifar10_resnet20_w8a8,cifar10_resnet20_w4a4_statistical
      many runs as points, and two of them tensor by tensor and class by class; without --detail all of up to four, of
      more those on the Pareto front, at most the four most accurate

  pq report results/sweep_cifar10 --live
      a sweep while it runs, on http://127.0.0.1:5006, with rows as they come

  pq report results/sweep_cifar10 --figures figures
      the charts as PNG and SVG for papers, one file each (extra [figures]: matplotlib)

Folders hold what the other commands write: result.json, results.csv, leaderboard.csv, sensitivity.json, compare.json,
ablation.json, bench.json; JSON beside trained weights works too. Every table of the page is there as CSV behind a link
in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jsonargparse

from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.command_line import add_flags, command_parser, from_flags
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.inference_config import InferenceConfig
from pytorch_quantizer.experiments.saved_model import measure_saved
from pytorch_quantizer.reports.figures import require_matplotlib, write_figures
from pytorch_quantizer.reports.live import PORT, serve
from pytorch_quantizer.reports.report import write_report_page
from pytorch_quantizer.reports.sources import Material, read_material, run_of

MODEL = ".safetensors"


@dataclass(frozen=True)
class Config(InferenceConfig):
    """InferenceConfig for a model that is quantized already."""

    calibration_samples: int = field(
        default=1024,
        metadata={"help": "images that those on which tensors are looked at, and passes timed, are drawn from"},
    )
    seed: int = field(default=0, metadata={"help": "of that draw"})
    strict: bool = False  # no flag
    statistics_file: Path | None = None  # no flag
    output: Path | None = None  # no flag: the page's own


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, read or measure what is to be shown, write the page and the figures, or serve the live one."""
    flags = vars(parser().parse_args(arguments))
    sources = [Path(source) for source in flags["sources"]]
    if flags["live"]:
        serve(_only(sources), flags["port"])
        return
    output = flags["output"] or default_output(sources)
    require_writable(output)
    if flags["figures"] is not None:
        require_matplotlib()
    material = read_or_measure(sources, from_flags(Config, flags))
    detail = [name.strip() for name in (flags["detail"] or "").split(",") if name.strip()]
    size = write_report_page(output, material, flags["title"], detail)
    print(f"wrote {output}: {size / 2**20:.1f} MiB, opens without a network")
    if flags["figures"] is not None:
        for path in write_figures(flags["figures"], material, flags["tensor"], detail):
            print(f"wrote {path}")


def parser() -> jsonargparse.ArgumentParser:
    """The sources, what becomes of them, and how a model is measured."""
    made = command_parser("report", __doc__, "SOURCE [SOURCE ...] [flags]")
    made.add_argument("sources", nargs="+", help="folders and files that other commands wrote, or a quantized model")
    made.add_argument("--output", type=Path, help="the page; default: report.html in the first folder")
    made.add_argument("--title", help="of the page; default: what it shows")
    made.add_argument("--detail", help="runs that are shown in full: names of their folders, with commas between")
    made.add_argument("--figures", type=Path, help="folder for the charts as PNG and SVG")
    made.add_argument("--tensor", help="whose values --figures draws; default: the activation that loses most")
    made.add_argument("--live", action="store_true", help="serve a running sweep's folder on 127.0.0.1 until Ctrl-C")
    made.add_argument("--port", type=int, default=PORT, help="of --live; 0: any that is free")
    add_flags(made, Config, "a quantized model, measured anew")
    return made


def default_output(sources: Sequence[Path]) -> Path:
    """report.html in the first folder, beside the first file."""
    first = sources[0]
    return first / "report.html" if first.is_dir() else first.with_name(f"{first.stem}_report.html")


def read_or_measure(sources: Sequence[Path], config: InferenceConfig) -> Material:
    """What files hold, and what is measured of models. Raises InputError as those do."""
    material = read_material(path for path in sources if path.suffix != MODEL)
    for path in sources:
        if path.suffix == MODEL:
            found = measure_saved(path, config)
            material.runs.append(run_of(path.stem, found.record, found.layers, found.details))
    return material


def _only(sources: Sequence[Path]) -> Path:
    if len(sources) != 1:
        raise InputError(f"--live shows one sweep, got {len(sources)} sources: give its folder")
    return sources[0]

"""How fast is it, and how large: a network in float32, simulated, and in ONNX Runtime in float32 and in integers.

Prints a line a form and batch, the forms timed in turns so that their ratios mean something, with the bytes of each
one's file; writes bench.csv and bench.json into the output folder. Accuracy is `pq run`'s.

  pq bench
      the embedded job's network: handwritten digits, the bundled ResNet-20

  pq bench --data DIR --arch resnet50 --recipe w8a8 --batches 1,8 --threads 1
      DIR holds ImageNet's val/<wnid>/*.JPEG

  pq bench --packed digits.safetensors
      a quantized network that is there (`--save`, `pq train`, pq.save), beside the float one that it was made from:
      for another than the bundled, --data DIR --arch ARCH --checkpoint FILE

'simulated' is floating point on the quantization grid: its times say nothing of integer hardware. ONNX Runtime takes
part where it is installed (extra [onnx]) and the device is the CPU. Times want a machine that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonargparse

from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.command_line import add_flags, command_parser, from_flags
from pytorch_quantizer.commands.recipe_flags import add_recipe_flags, recipe_from, refuse_recipe
from pytorch_quantizer.commands.report_flag import add_report_flag, check_report, write_report_of
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.inference_config import InferenceConfig, ResolvedConfig, resolved
from pytorch_quantizer.experiments.quantizing import Networks, quantize_network, saved_network
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.experiments.speed import FILES, Timing, run_speed, speed_text, write_speed


@dataclass(frozen=True)
class Config(InferenceConfig):
    """InferenceConfig without what is evaluated, and other files."""

    limit: int | None = None  # no flag
    output: Path | None = field(
        default=None, metadata={"help": f"folder for {', '.join(FILES)}; default: results/bench_DATASET_ARCH_RECIPE"}
    )


def main(arguments: list[str] | None = None) -> None:
    """Read the flags, quantize or load, time, print the table, write it."""
    flags = vars(parser().parse_args(arguments))
    timing = Timing(parse_batches(flags["batches"]), flags["threads"], flags["repeats"])
    config, packed = resolved(from_flags(Config, flags)), flags["packed"]
    name, make = saved(flags, config, packed) if packed is not None else quantized(flags, config)
    folder = config.output or Path("results") / f"bench_{config.dataset}_{config.arch}_{name}"
    for file in FILES:
        require_writable(folder / file)
    check_report(flags["report"])
    speed = run_speed(make(), config, timing)
    write_speed(speed, folder)
    print(f"{config.arch} on {config.dataset}: {name}, images {' x '.join(map(str, speed.record['image']))}")
    print(speed_text(speed), f"wrote {', '.join(str(folder / file) for file in FILES)}", sep="\n")
    write_report_of(flags["report"], folder / FILES[-1])


Made = tuple[str, Callable[[], Networks]]  # what the networks are called, and what makes them


def quantized(flags: dict[str, Any], config: ResolvedConfig) -> Made:
    """By the recipe of the flags."""
    recipe, resources = recipe_from(flags), from_flags(Resources, flags)
    resources.check(recipe)
    return recipe.name, lambda: quantize_network(config, recipe, resources)


def saved(flags: dict[str, Any], config: ResolvedConfig, packed: Path) -> Made:
    """From a packed checkpoint. Raises InputError where flags ask for a recipe as well."""
    refuse_recipe(flags)
    return packed.stem, lambda: saved_network(config, packed)


def parser() -> jsonargparse.ArgumentParser:
    """The flags: how to time, then what, then the recipe and its fields."""
    made = command_parser("bench", __doc__)
    made.add_argument("--batches", default="1,32", help="images of a pass, one number or several with commas")
    made.add_argument("--threads", type=int, default=None, help="of the CPU; default: as many as torch takes")
    made.add_argument("--repeats", type=int, default=None, help="timed passes; default: as many as it takes")
    made.add_argument("--packed", type=Path, help="a packed checkpoint to time, in place of a recipe")
    add_report_flag(made)
    add_flags(made, Config, "what to run")
    add_flags(made, Resources, "what learning may take")
    add_recipe_flags(made)
    return made


def parse_batches(text: str) -> tuple[int, ...]:
    """The numbers, each once. Raises InputError where one isn't a whole number above 0."""
    parts = dict.fromkeys(part.strip() for part in str(text).split(","))
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--batches must be whole numbers from 1, with commas between, got {text!r}")
    return tuple(int(part) for part in parts)

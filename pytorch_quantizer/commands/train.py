"""Train a network on a data set, float or quantized; what was measured stands as JSON beside it.

  pq train
      digits, ResNet-20: half a minute

  pq train --config scripts/configs/digits_resnet20.yaml
      the checkpoint that the package ships

  pq train --config scripts/configs/cifar10_resnet20.json
      CIFAR-10, fetched if it isn't there

  pq train --config scripts/configs/cifar10_resnet20_w2a2.yaml --data DIR --checkpoint resnet20.th
      2-bit weights and activations

  pq train --recipe w4a4_statistical --checkpoint FILE --dataset cifar10 --data DIR
      quantization-aware training: begins with a trained network, quantized as the recipe says (a shipped recipe's name
      or a file, YAML or JSON), and writes a packed checkpoint, as pq.save does; what the recipe learns by itself
      (reconstruction, tuning) is learned first, and anew whenever the command starts

A config file is YAML or JSON; keys that begin with an underscore, such as _comment, are comments anywhere in it.
After each epoch accuracy, precision, recall and F1 are measured on validation images, and OUTPUT.state.safetensors is
written: the same command goes on from there after an interruption, and ends with the same bytes as without.
A run that is finished is not trained again by the same command, which says so and prints its results; --resume false
trains anew. With other settings another --output is needed, or --resume false.
OUTPUT.best.safetensors is the epoch that was best on validation images, of equals the earliest; OUTPUT is the last,
unless --keep best.
--report FILE writes the curves as one HTML page, too.
"""

import sys
from pathlib import Path
from typing import Any

import jsonargparse

from pytorch_quantizer.commands.report_flag import check_report, take_report_flag, write_report_of
from pytorch_quantizer.training import TrainingConfig, finished_report, train
from pytorch_quantizer.training.flags import parse_training, training_parser


def main(arguments: list[str] | None = None) -> None:
    """Train as the flags and the config say and print what came out."""
    given, page = take_report_flag(sys.argv[1:] if arguments is None else arguments)
    check_report(page)
    config = parse(given, page)
    finished = finished_report(config)
    report = train(config) if finished is None else finished
    print("\n".join(_summary(report, finished is not None)))
    write_report_of(page, Path(report["config"]["output"]).with_suffix(".json"))


def parse(arguments: list[str], page: Path | None = None) -> TrainingConfig:
    """``parse_training``, with this command's help. page: what --report writes."""
    return parse_training(arguments, __doc__, page=page)


def parser() -> jsonargparse.ArgumentParser:
    """The flags: TrainingConfig's fields."""
    return training_parser(__doc__)


def _summary(report: dict[str, Any], finished: bool) -> list[str]:
    """What was trained and how, what the test images say, and what is written, or was by a run finished before."""
    config, test = report["config"], report["test"]
    recipe = config["recipe"]
    how = "in float, without a recipe" if recipe is None else f"with quantization, recipe {recipe}"
    scores = ", ".join(f"{name} {test[name]['macro']:.4f}" for name in ("precision", "recall", "f1"))
    written = f"epoch {report['written_epoch']} of {config['epochs']}{_best(report)}"
    began = f"finished before, nothing is trained (--resume false trains anew): {config['output']}"
    wrote = began if finished else f"wrote {config['output']}"
    return [
        f"trained {config['arch']} on {config['dataset']} {how}",
        f"test: top-1 {test['top1']:.2%} of {test['samples']} images; macro {scores}",
        f"{wrote} ({written}) and the report beside it, .json; {report['seconds']:.0f} s",
    ]


def _best(report: dict[str, Any]) -> str:
    """The best epoch on validation images, and that it is the earliest where others are as good."""
    best = report["best_epoch"]
    if best is None:
        return ""
    accuracies = [record["validation"]["accuracy"] for record in report["epochs"]]
    equals = accuracies.count(max(accuracies))
    return f"; best on validation images was {best}" + (f", the earliest of {equals} equals" if equals > 1 else "")

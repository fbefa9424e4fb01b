"""Train a float network on a data set and write its weights as safetensors, with what was measured as JSON beside it.

python scripts/train.py                                                     # digits, ResNet-20: half a minute
python scripts/train.py --config scripts/configs/digits_resnet20.yaml       # the checkpoint that the package ships
python scripts/train.py --dataset cifar10 --data PATH --arch resnet20 --output runs/cifar10.safetensors
"""

import sys
from typing import Any

import jsonargparse
import yaml

from pytorch_quantizer.command_line import HelpFormatter, run
from pytorch_quantizer.training import TrainingConfig, train


def main(arguments: list[str] | None = None) -> None:
    """Train as the flags and the config say and print what came out."""
    report = train(parse(sys.argv[1:] if arguments is None else arguments))
    test = report["test"]
    scores = ", ".join(f"{name} {test[name]['macro']:.4f}" for name in ("precision", "recall", "f1"))
    print(f"test: top-1 {test['top1']:.2%} of {test['samples']} images; macro {scores}")
    print(f"wrote {report['config']['output']} and the report beside it (.json) after {report['seconds']:.0f} s")


def parse(arguments: list[str]) -> TrainingConfig:
    """Read flags over config file over defaults; keys that start with '_' are comments."""
    jsonargparse.set_loader("commented_yaml", load_commented_yaml, exceptions=(yaml.YAMLError,))
    config: TrainingConfig = jsonargparse.auto_cli(
        TrainingConfig,
        args=[_underscored(argument) for argument in arguments],
        as_positional=False,
        prog="train.py",
        description=__doc__,
        parser_mode="commented_yaml",
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=HelpFormatter,
    )
    return config


def _underscored(argument: str) -> str:
    """Let --batch-size mean --batch_size, which is what a config file calls it."""
    flag, equals, value = argument.partition("=")
    return (flag.replace("-", "_").replace("__", "--", 1) if flag.startswith("--") else flag) + equals + value


def load_commented_yaml(text: str) -> Any:
    """Read YAML (or JSON) and leave out keys that start with '_', at any depth."""
    return _without_comments(yaml.safe_load(text))


def _without_comments(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_comments(inner) for key, inner in value.items() if not str(key).startswith("_")}
    return value


if __name__ == "__main__":
    run("train.py", main)

"""Train a float network on a data set and write its weights as safetensors, with what was measured as JSON beside it.

python scripts/train.py                                                     # digits, ResNet-20: half a minute
python scripts/train.py --config scripts/configs/digits_resnet20.yaml       # the checkpoint that the package ships
python scripts/train.py --dataset cifar10 --data PATH --arch resnet20 --output runs/cifar10.safetensors
"""

import sys

from pytorch_quantizer.command_line import run
from pytorch_quantizer.training import TrainingConfig, train
from pytorch_quantizer.training.flags import parse_training


def main(arguments: list[str] | None = None) -> None:
    """Train as the flags and the config say and print what came out."""
    report = train(parse(sys.argv[1:] if arguments is None else arguments))
    test = report["test"]
    scores = ", ".join(f"{name} {test[name]['macro']:.4f}" for name in ("precision", "recall", "f1"))
    print(f"test: top-1 {test['top1']:.2%} of {test['samples']} images; macro {scores}")
    print(f"wrote {report['config']['output']} and the report beside it (.json) after {report['seconds']:.0f} s")


def parse(arguments: list[str]) -> TrainingConfig:
    """Read flags over config file over defaults; keys that start with '_' are comments."""
    return parse_training(arguments, __doc__)


if __name__ == "__main__":
    run("train.py", main)

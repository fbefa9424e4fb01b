"""torchvision's ResNet-18 on CIFAR-10: float32, dynamic int8, static int8, beside published figures: one command.

  python scripts/reproduce/resnet18_cifar10.py --data DIR
      DIR holds CIFAR-10 (cifar-10-batches-py/, or train and test as .npz)

Trains the network first, as scripts/train.py --config scripts/configs/cifar10_resnet18.yaml does, where
runs/cifar10_resnet18.safetensors isn't there (20 minutes of one core). Accuracy at 32 x 32; times of one image on one
core, also at 224 x 224. Writes reproduce_….csv, .md and .json. Every finished row is kept in OUTPUT/cells: a run that
was interrupted goes on where it stopped.
"""

from pathlib import Path

from pytorch_quantizer.command_line import run
from pytorch_quantizer.experiments.reproduce import RESNET18_CIFAR10
from pytorch_quantizer.experiments.reproduce_command import reproduce

CONFIG = Path(__file__).parents[1] / "configs" / "cifar10_resnet18.yaml"


def main(arguments: list[str] | None = None) -> None:
    """Measure what isn't kept yet, print the table, write it."""
    reproduce(RESNET18_CIFAR10, arguments, description=__doc__, training=CONFIG)


if __name__ == "__main__":
    run("resnet18_cifar10.py", main)

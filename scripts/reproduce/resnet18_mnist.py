"""torchvision's ResNet-18 with one input channel on MNIST: float32 and static int8: one command.

  python scripts/reproduce/resnet18_mnist.py --data DIR
      DIR holds MNIST's IDX files, or raw/ or MNIST/raw/ with them

Trains the network first, as scripts/train.py --config scripts/configs/mnist_resnet18.yaml does, where
runs/mnist_resnet18.safetensors isn't there (5 minutes of one core). Writes reproduce_….csv, .md and .json. Every
finished row is kept in OUTPUT/cells: a run that was interrupted goes on where it stopped.
"""

from pathlib import Path

from pytorch_quantizer.command_line import run
from pytorch_quantizer.experiments.reproduce import RESNET18_MNIST
from pytorch_quantizer.experiments.reproduce_command import reproduce

CONFIG = Path(__file__).parents[1] / "configs" / "mnist_resnet18.yaml"


def main(arguments: list[str] | None = None) -> None:
    """Measure what isn't kept yet, print the table, write it."""
    reproduce(RESNET18_MNIST, arguments, description=__doc__, training=CONFIG)


if __name__ == "__main__":
    run("resnet18_mnist.py", main)

"""ResNet-20 on CIFAR-10 in int8, fused and not fused, int4 and int2, beside published figures: one command.

  python scripts/reproduce/resnet20_cifar10_int8.py --data DIR
      DIR holds CIFAR-10 (cifar-10-batches-py/, or train and test as .npz) and resnet20.th, the published weights

Not fused: each batch norm and each ReLU is a quantized step of its own behind its convolution. Writes reproduce_….csv,
.md and .json. Every finished row is kept in OUTPUT/cells: a run that was interrupted goes on where it stopped.
"""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.experiments.reproduce import RESNET20_INT8
from pytorch_quantizer.experiments.reproduce_command import reproduce


def main(arguments: list[str] | None = None) -> None:
    """Measure what isn't kept yet, print the table, write it."""
    reproduce(RESNET20_INT8, arguments, description=__doc__)


if __name__ == "__main__":
    run("resnet20_cifar10_int8.py", main)

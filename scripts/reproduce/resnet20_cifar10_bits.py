"""ResNet-20 on CIFAR-10 with weights and activations of 16, 8, 4 and 2 bits, beside published figures: one command.

  python scripts/reproduce/resnet20_cifar10_bits.py --data DIR
      DIR holds CIFAR-10 (cifar-10-batches-py/, or train and test as .npz) and resnet20.th, the published weights

Accuracy, macro precision, recall and F1, bytes of the files, time over the test set, each of the model that the row
names: 16 bits simulated in PyTorch, 8, 4 and 2 bits by ONNX Runtime in integers. Writes reproduce_….csv, .md and .json.
Every finished row is kept in OUTPUT/cells: a run that was interrupted goes on where it stopped.
"""

from pytorch_quantizer.command_line import run
from pytorch_quantizer.experiments.reproduce import RESNET20_BITS
from pytorch_quantizer.experiments.reproduce_command import reproduce


def main(arguments: list[str] | None = None) -> None:
    """Measure what isn't kept yet, print the table, write it."""
    reproduce(RESNET20_BITS, arguments, description=__doc__)


if __name__ == "__main__":
    run("resnet20_cifar10_bits.py", main)

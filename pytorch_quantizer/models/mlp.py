"""A plain multilayer perceptron for small images: linear layers and ReLUs, nothing else."""

from itertools import pairwise

from torch import Tensor, nn

HIDDEN = {"mlp": (256, 128)}  # by name, the widths of the hidden layers
SIDE = 28  # pixels: MNIST's


class MLP(nn.Module):
    """Flattened images, a ReLU after each hidden layer; [N, C, 28, 28] -> logits [N, num_classes]."""

    def __init__(self, hidden: tuple[int, ...], num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        widths = (in_channels * SIDE * SIDE, *hidden)
        layers = [layer for sizes in pairwise(widths) for layer in (nn.Linear(*sizes), nn.ReLU())]
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential(*layers)
        self.linear = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, 28, 28] -> logits [N, num_classes]."""
        return self.linear(self.hidden(self.flatten(x)))

"""Windows times rows of weights are the layer's outputs, at every place or at some, of every image."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytorch_quantizer.calibration.sampled_windows import padded_size, sampled_windows, weight_of_rows, weight_rows

LAYERS = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 6, 7)),
    "padded": (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 6, 7)),
    "same": (nn.Conv2d(3, 4, (3, 5), padding="same"), (2, 3, 6, 7)),
    "reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 7)),
    "strided and dilated": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 2)), (2, 3, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 6, 7)),
    "one dimension": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9)),
    "three dimensions": (nn.Conv3d(3, 4, (1, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 3, 3, 5, 6)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3), (2, 3, 4, 5)),
    "transposed, strided, cropped": (nn.ConvTranspose2d(3, 4, (4, 3), stride=(2, 3), padding=(1, 2)), (2, 3, 4, 5)),
    "transposed, all of it": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        (2, 4, 4, 5),
    ),
    "transposed, cropped beyond the kernel": (nn.ConvTranspose2d(3, 4, 1, padding=1), (2, 3, 5, 6)),
    "transposed, one dimension": (nn.ConvTranspose1d(3, 4, 3, stride=2), (2, 3, 5)),
    "transposed, three dimensions": (nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 2, 2, 3, 2)),
    "linear": (nn.Linear(5, 4), (7, 5)),
    "linear on tokens": (nn.Linear(5, 4), (2, 3, 5)),
}
cases = pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)


def drawn(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def outputs_by_place(layer, x):
    """[N, P, C]: the layer's outputs without its bias."""
    if isinstance(layer, nn.Linear):
        return (layer(x) - layer.bias).reshape(len(x), -1, layer.out_features)
    return (layer(x) - layer.bias.view(-1, *[1] * (x.dim() - 2))).flatten(2).transpose(1, 2)


@torch.no_grad()
def computed(layer, x, rows, first=0):
    """The same from windows and rows of weights: [N, some places, C]."""
    seen = sampled_windows(layer, x, rows, first)
    outputs = torch.bmm(seen, weight_rows(layer, layer.weight).mT)  # [G, N·P, C / G]
    return outputs.permute(1, 0, 2).reshape(len(x), -1, outputs.shape[0] * outputs.shape[2])


@cases
def test_all_windows_give_the_outputs(layer, shape):
    x = drawn(shape)
    assert torch.allclose(computed(layer, x, 10**6), outputs_by_place(layer, x), atol=1e-5)


@cases
def test_the_weight_comes_back(layer, shape):
    assert torch.equal(weight_of_rows(layer, weight_rows(layer, layer.weight)), layer.weight)


def test_some_places_are_spread_over_every_image():
    layer, x = nn.Conv2d(3, 4, 3, padding=1), drawn((3, 3, 8, 8))
    expected = outputs_by_place(layer, x)
    found = computed(layer, x, rows=12)
    assert found.shape[:2] == (3, 4)
    assert torch.allclose(found, expected[:, [0, 16, 32, 48]], atol=1e-5)
    assert torch.allclose(computed(layer, x, 12, first=50), expected[:, [50, 2, 18, 34]], atol=1e-5)


def test_an_empty_batch_has_no_windows():
    assert sampled_windows(nn.Conv2d(3, 4, 3), drawn((0, 3, 5, 5)), 10).shape == (1, 0, 27)


@cases
def test_the_largest_tensor_is_as_large_as_is_counted(layer, shape, monkeypatch):
    made, pad = [drawn(shape).numel()], F.pad

    def watched(x, *given, **named):
        made.extend([x.numel(), (padded := pad(x, *given, **named)).numel()])
        return padded

    monkeypatch.setattr(F, "pad", watched)
    sampled_windows(layer, drawn(shape), 1)
    assert max(made) == len(drawn(shape)) * padded_size(layer, shape)

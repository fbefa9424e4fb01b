"""Windows are what a layer's weights see: multiplied by them they give the layer's outputs."""

import pytest
import torch
from torch import nn

from pytorch_quantizer import InputError
from pytorch_quantizer.calibration.covariance import ROWS, InputMoments, windows

LAYERS = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 6, 7)),
    "padded": (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 6, 7)),
    "same": (nn.Conv2d(3, 4, (3, 5), padding="same"), (2, 3, 6, 7)),
    "reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 7)),
    "strided and dilated": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 2)), (2, 3, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 6, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 6, 7)),
    "one dimension": (nn.Conv1d(3, 4, 3, stride=2, padding=1), (2, 3, 9)),
    "linear": (nn.Linear(5, 4), (7, 5)),
    "linear on tokens": (nn.Linear(5, 4), (2, 3, 5)),
}


def drawn(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_windows_times_weights_are_the_outputs(layer, shape):
    x = drawn(shape)
    rows = windows(layer, x)
    groups = getattr(layer, "groups", 1)
    weight = layer.weight.detach().reshape(groups, -1, rows.shape[2])
    outputs = torch.bmm(rows, weight.mT)  # [G, R, C / G]
    expected = (
        layer(x) - (layer.bias if isinstance(layer, nn.Linear) else layer.bias.view(-1, *[1] * (x.dim() - 2)))
    ).detach()
    if not isinstance(layer, nn.Linear):
        expected = expected.movedim(1, -1)
    assert torch.allclose(outputs.permute(1, 0, 2).reshape(expected.shape), expected, atol=1e-5)


def test_moments_are_of_all_batches():
    layer, batches = nn.Conv2d(3, 4, 3, padding=1), [drawn((size, 3, 5, 5)) + size for size in (1, 4)]
    moments = InputMoments(layer)
    for batch in batches:
        moments(batch)
    rows = torch.cat([windows(layer, batch) for batch in batches], 1)[0].double()
    assert torch.allclose(moments.second_moments(centred=False)[0], rows.mT @ rows / len(rows), rtol=1e-5, atol=1e-4)
    assert torch.allclose(moments.second_moments(centred=True)[0], rows.mT.cov(correction=0), rtol=1e-5, atol=1e-4)


def test_an_empty_batch_adds_nothing():
    layer, x = nn.Conv2d(3, 4, 3), drawn((2, 3, 5, 5))
    seen, alone = InputMoments(layer), InputMoments(layer)
    for batch in (x[:0], x, x[:0]):
        seen(batch)
    alone(x)
    assert torch.equal(seen.second_moments(centred=True), alone.second_moments(centred=True))


def test_nothing_seen_is_an_error():
    moments = InputMoments(nn.Linear(3, 4))
    moments(torch.zeros(0, 3))
    with pytest.raises(InputError, match="no value was observed"):
        moments.second_moments(centred=False)


def test_of_large_batches_some_whole_images_are_looked_at():
    layer = nn.Conv2d(1, 1, 1)
    x = drawn((40, 1, 32, 32))
    assert torch.equal(windows(layer, x)[0, :, 0], x[: ROWS // 1024].flatten())

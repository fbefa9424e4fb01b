"""Min and max of each calibration batch come along with the quantized model, of each tensor that is quantized."""

import torch
from torch import nn

from pytorch_quantizer import quantize

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)[:, None, None, None]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 3)).eval()


def test_a_row_a_batch_in_order():
    model = net()
    found = quantize(model, "w8a8", IMAGES.split(5), progress=False).batch_extremes
    inputs = [[part.min().item(), part.max().item()] for part in IMAGES.split(5)]
    assert found["x" if "x" in found else "input"].tolist() == inputs
    relus = [model[1](model[0](part)) for part in IMAGES.split(5)]
    expected = torch.tensor([[part.min().item(), part.max().item()] for part in relus], dtype=torch.float64)
    torch.testing.assert_close(found["1"], expected, rtol=1e-5, atol=1e-6)  # of the ReLU6's output: 0 to 6


def test_none_where_ranges_come_from_a_file(tmp_path):
    for expected in (True, False):
        quantized = quantize(net(), "w8a8", IMAGES.split(5), statistics_file=tmp_path / "s.json", progress=False)
        assert bool(quantized.batch_extremes) is expected


def test_an_empty_batch_leaves_no_row_that_no_picture_could_show():
    found = quantize(net(), "w8a8", [IMAGES, IMAGES[:0]], progress=False).batch_extremes
    assert all(rows.isfinite().all() for rows in found.values())

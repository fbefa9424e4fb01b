"""What learns, on each device: it repeats to the bit, a run that was killed too, and comes nearer to the float network.

What it learns, and how, is tested on the CPU: test_reconstruct.py, test_tune.py, test_second_order.py, test_qat.py.
"""

import pytest
import torch
import torch.nn.functional as F
from networks import images, network
from test_reconstruct import KilledError, killed_after
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.calibration.qat import Student
from pytorch_quantizer.quantize import quantize

BLOCKS = {"reconstruction": "block", "reconstruction_iterations": 40, "reconstruction_images": 32}
METHODS = {
    "second order": {"weight_rounding": "second_order"},
    "corrected": {"activation_correction": "both", "correction_images": 32},
    "reconstructed": BLOCKS,
    "tuned": {"tuning_epochs": 4, "tuning_batch": 8, "tuning_weight_rate": 0.002},
    "all of it": {"weight_rounding": "second_order", "tuning_epochs": 2, "tuning_batch": 8} | BLOCKS,
}
BATCHES = [images(16, 3, 8, 8), images(16, 3, 8, 8, seed=2)]


def net():
    """A residual network with batch norms."""

    def forward(net, x):
        x = net.norm(net.stem(x)).relu()
        x = (x + net.second(net.first(x).relu())).relu()
        return net.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    layers = {name: nn.Conv2d(3 if name == "stem" else 8, 8, 3, padding=1) for name in ("stem", "first", "second")}
    return network(forward, **layers, norm=nn.BatchNorm2d(8), fc=nn.Linear(8, 4))


def recipe(**fields):
    return pq.Recipe(weights="int3", activations="int4", clip="mse", weight_clip="mse", **fields)


def learned(device, fields, **options):
    batches = [batch.to(device) for batch in BATCHES]
    return quantize(net().to(device), recipe(**fields), batches, progress=False, **options)


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def error(model, device):
    """Mean squared difference of the logits from the float network's."""
    seen = torch.cat(BATCHES).to(device)
    with torch.no_grad():
        return float((model(seen) - net().to(device)(seen)).square().mean())


@pytest.mark.parametrize("fields", METHODS.values(), ids=METHODS)
def test_comes_nearer_to_the_float_network_and_repeats_to_the_bit(device, fields):
    model = learned(device, fields)
    assert all(tensor.device.type == device for tensor in model.state_dict().values())
    assert error(model, device) < error(learned(device, {}), device)
    assert same(learned(device, fields), model)


def test_a_run_that_was_killed_ends_with_the_same_bits(device, monkeypatch, tmp_path):
    fields = METHODS["all of it"]
    undisturbed = learned(device, fields)
    with monkeypatch.context() as patch:
        killed_after(patch, 60)  # within the second block
        with pytest.raises(KilledError):
            learned(device, fields, resume=tmp_path)
    assert len(list(tmp_path.glob("block-*"))) == 1
    assert same(learned(device, fields, resume=tmp_path), undisturbed)


def test_training_with_quantization_repeats_to_the_bit(device):
    seen, labels = torch.cat(BATCHES).to(device), torch.arange(32, device=device) % 4

    def trained():
        student = Student.from_model(net().to(device), recipe(), [seen], norms=True, progress=False)
        optimizer = torch.optim.Adam(student.groups(0.01, 0.002))
        student.train_mode()
        for _ in range(5):
            optimizer.zero_grad()
            student.loss(seen, labels, distillation=0.5, temperature=2.0).backward()
            optimizer.step()
        return student.hardened()

    assert same(trained(), trained())

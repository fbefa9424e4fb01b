"""Learning asks for kernels that repeat, and leaves torch's settings as they were, whatever happens."""

import os

import numpy as np
import pytest
import torch
from networks import sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.repeatable import repeatable_kernels
from pytorch_quantizer.training import TrainingConfig, train

NAME = "CUBLAS_WORKSPACE_CONFIG"
INSIDE = (True, True, False, True, False)


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )


@pytest.fixture(params=[False, True], ids=["torch's own", "the caller's"])
def before(request):
    """Settings that differ from those inside."""
    kept = settings()
    if request.param:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = True
    yield settings()
    torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
    torch.utils.deterministic.fill_uninitialized_memory = kept[2]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = kept[3:]


def test_inside_and_behind(before):
    with repeatable_kernels():
        assert settings() == INSIDE
    assert settings() == before


def test_behind_an_error(before):
    with pytest.raises(RuntimeError, match="stopped"), repeatable_kernels():
        raise RuntimeError("stopped")
    assert settings() == before


@pytest.mark.parametrize(
    ("gpu", "given", "inside"), [(True, None, ":4096:8"), (True, ":16:8", ":16:8"), (False, None, None)], ids=str
)
def test_cublas_gets_a_workspace_of_fixed_size_where_there_is_a_gpu(monkeypatch, gpu, given, inside):
    monkeypatch.setenv(NAME, given or "")  # so that it is put back
    if given is None:
        monkeypatch.delenv(NAME)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with repeatable_kernels():
        assert os.environ.get(NAME) == inside


@pytest.fixture
def under_gradients(monkeypatch):
    """The settings of each convolution that takes part in learning."""
    seen, real = [], nn.Conv2d._conv_forward

    def recorded(layer, x, weight, bias):
        if weight.requires_grad and torch.is_grad_enabled():
            seen.append(settings())
        return real(layer, x, weight, bias)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", recorded)
    return seen


@pytest.mark.parametrize(
    "fields", [{"reconstruction": "block", "reconstruction_iterations": 2}, {"tuning_epochs": 1}], ids=str
)
def test_recipes_that_learn_ask_for_them(under_gradients, fields):
    net = sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    pq.quantize(net, pq.Recipe(weights="int4", activations="int4", **fields), torch.randn(8, 3, 4, 4), progress=False)
    assert set(under_gradients) == {INSIDE}


def test_training_asks_for_them(under_gradients, tmp_path):
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=np.zeros((10, 8, 8, 3), np.uint8), labels=np.arange(10))
    config = TrainingConfig(
        dataset="cifar10", data=tmp_path, epochs=1, batch_size=5, device="cpu", output=tmp_path / "out.safetensors"
    )
    train(config, progress=False)
    assert set(under_gradients) == {INSIDE}

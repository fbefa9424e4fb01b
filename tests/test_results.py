"""What quantization costs on real images: ResNet-20 with its published weights on CIFAR-10's test images.

Floors, not records: what a sound pipeline passes with room to spare and a broken one (a lost ReLU, a swapped axis,
a range that is not intersected with what was observed, a bias in the wrong place) does not.
"""

import pytest
import torch
from real_data import real_data

from pytorch_quantizer import Recipe, capture, fold, quantize
from pytorch_quantizer.data import calibration_loader, load_dataset, make_loader
from pytorch_quantizer.models import create_model

IMAGES = 2000


@pytest.fixture(scope="module")
def resnet20():
    return create_model("resnet20", checkpoint=real_data("cifar10/resnet20.th"))


@pytest.fixture(scope="module")
def batches():
    """The first 2,000 test images."""
    real_data("cifar10/test.npz")
    loader = iter(make_loader(load_dataset("cifar10", real_data("cifar10")), 500))
    return [next(loader) for _ in range(IMAGES // 500)]


@pytest.fixture(scope="module")
def calibration():
    real_data("cifar10/train_10k.npz")
    return list(
        calibration_loader(load_dataset("cifar10", real_data("cifar10"), split="train"), 256, batch_size=256, seed=0)
    )


@torch.no_grad()
def logits_of(model, batches):
    return torch.cat([model(images) for images, _ in batches])


@pytest.fixture(scope="module")
def labels(batches):
    return torch.cat([labels for _, labels in batches])


@pytest.fixture(scope="module")
def float_logits(resnet20, batches):
    return logits_of(resnet20, batches)


def top1(logits, labels):
    return (logits.argmax(1) == labels).float().mean().item()


def test_float(float_logits, labels):
    """91.73 % on all 10,000; within three standard errors on a fifth of them."""
    assert top1(float_logits, labels) == pytest.approx(0.9173, abs=0.018)


def test_folding_changes_nothing(resnet20, batches, float_logits):
    graph, kept = fold(capture(resnet20, batches[0][0][:2]))
    assert not kept
    folded = logits_of(graph, batches)
    assert (folded - float_logits).abs().max() <= 1e-4
    assert (folded.argmax(1) != float_logits.argmax(1)).sum() <= 3


@pytest.fixture(scope="module")
def w8a8_logits(resnet20, batches, calibration):
    return logits_of(quantize(resnet20, "w8a8", calibration, progress=False), batches)


def test_w8a8_is_nearly_the_float_model(w8a8_logits, float_logits, labels):
    assert top1(w8a8_logits, labels) >= top1(float_logits, labels) - 0.005
    assert (w8a8_logits.argmax(1) == float_logits.argmax(1)).float().mean() >= 0.98
    assert not torch.equal(w8a8_logits, float_logits)


def test_w8a8_laplace_clips_nothing_that_matters(resnet20, batches, calibration, float_logits, labels):
    logits = logits_of(quantize(resnet20, "w8a8_aciq", calibration, progress=False), batches)
    assert top1(logits, labels) >= top1(float_logits, labels) - 0.006


def test_w8a4_laplace_holds_where_minmax_does_not(resnet20, batches, calibration, float_logits, labels):
    laplace, minmax = (
        top1(logits_of(quantize(resnet20, name, calibration, progress=False), batches), labels)
        for name in ("w8a4_aciq", "w8a4")
    )
    assert laplace >= top1(float_logits, labels) - 0.02
    assert laplace >= minmax + 0.01


def test_int32_biases_cost_nothing(resnet20, batches, calibration, w8a8_logits):
    recipe = Recipe.load("w8a8").replace(bias="float32", deployable=False)
    logits = logits_of(quantize(resnet20, recipe, calibration, progress=False), batches)
    assert (logits.argmax(1) != w8a8_logits.argmax(1)).sum() <= 0.005 * IMAGES
    assert not torch.equal(logits, w8a8_logits)

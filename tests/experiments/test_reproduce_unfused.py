"""'Not fused': the same network in float, and quantized steps where the fused one has a convolution alone."""

import pytest
import torch
from networks import sequence
from torch import nn

from pytorch_quantizer import InputError, quantize
from pytorch_quantizer.experiments.reproduce_unfused import as_convolution, unfused
from pytorch_quantizer.models import bundled_checkpoint, create_model


@pytest.fixture(scope="module")
def resnet20():
    return create_model("resnet20", in_channels=1, checkpoint=bundled_checkpoint("digits_resnet20"))


@pytest.fixture(scope="module")
def images():
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def sites(model, images):
    return {site.name for site in quantize(model, "w8a8", images, progress=False).sites if site.quantizer is not None}


class TestInFloat:
    @torch.no_grad()
    def test_it_computes_the_same(self, resnet20, images):
        assert torch.allclose(unfused(resnet20)(images), resnet20(images), rtol=0, atol=1e-4)

    def test_the_network_itself_is_not_touched(self, resnet20):
        before = {name: tensor.clone() for name, tensor in resnet20.state_dict().items()}
        changed = unfused(resnet20)
        assert before.keys() == resnet20.state_dict().keys()
        assert all(torch.equal(before[name], tensor) for name, tensor in resnet20.state_dict().items())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in changed.modules())

    @torch.no_grad()
    @pytest.mark.parametrize("affine", [True, False])
    def test_a_batch_norm_is_a_depthwise_convolution(self, affine):
        norm = sequence(nn.BatchNorm2d(3, affine=affine)).body[0]
        x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(as_convolution(norm)(x), norm(x), rtol=0, atol=1e-6)


class TestQuantized:
    def test_each_step_has_a_grid_of_its_own(self, images):
        network = sequence(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
        assert sites(network, images) & {"body.0", "body.1", "body.2", "body.2.1"} == {"body.2"}
        steps = {"body.0", "body.1", "body.2.1", "body.1.weight"}  # convolution → Q → batch norm → Q → ReLU → Q
        assert steps <= sites(unfused(network), images)

    def test_all_of_resnet20_is(self, resnet20, images):
        steps = 3 * 19  # behind each convolution: its result, the norm's weight, the norm's result
        assert len(sites(unfused(resnet20), images)) == len(sites(resnet20, images)) + steps


class TestMistakes:
    def test_a_network_without_batch_norms(self):
        with pytest.raises(InputError, match="of batch norms, and the network has none"):
            unfused(sequence(nn.Conv2d(1, 2, 3), nn.ReLU()))

    def test_a_batch_norm_that_keeps_no_statistics(self):
        with pytest.raises(InputError, match="the batch's own statistics"):
            unfused(sequence(nn.BatchNorm2d(2, track_running_stats=False)))

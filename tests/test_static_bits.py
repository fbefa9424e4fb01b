"""Static quantization at 2, 4, 8 and 16 bits, end to end, of a plain MLP trained here and of a small ResNet."""

import pytest
import torch
from networks import images, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.data import calibration_loader, load_dataset, make_loader
from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.models import bundled_checkpoint, create_model, default_preprocessing
from pytorch_quantizer.training import TrainingConfig, train

BITS = (2, 4, 8, 16)


class Case:
    """A network, its test images, and what it makes of them at each number of bits."""

    def __init__(self, arch, checkpoint):
        self.model = create_model(arch, in_channels=1, num_classes=10, checkpoint=checkpoint)
        pre = default_preprocessing(arch, "digits")
        self.test = make_loader(load_dataset("digits", split="test", preprocessing=pre), 270)
        self.train = load_dataset("digits", split="train", preprocessing=pre)
        self.images = torch.cat([batch for batch, _ in self.test])
        with torch.no_grad():
            self.logits = self.model(self.images)
        self.quantized = {bits: self.at(bits) for bits in BITS}

    def at(self, bits):
        recipe = pq.Recipe(weights=f"int{bits}", activations=f"int{bits}", clip="minmax")
        return pq.quantize(
            self.model, recipe, calibration_loader(self.train, 512, batch_size=128, seed=0), progress=False
        )

    def top1(self, bits):
        return pq.evaluate(self.quantized[bits], self.test, progress=False).top1

    def error(self, bits):
        """Relative to the logits, in the median image: one that lies beyond the ranges of calibration is cut off."""
        with torch.no_grad():
            difference = (self.quantized[bits](self.images) - self.logits).abs().amax(1)
        return float(difference.median() / self.logits.abs().max())


@pytest.fixture(scope="module")
def mlp(tmp_path_factory):
    weights = tmp_path_factory.mktemp("mlp") / "mlp.safetensors"
    options = {"epochs": 15, "validation_fraction": 0.0, "device": "cpu", "output": weights}
    report = train(TrainingConfig(arch="mlp", dataset="digits", **options), progress=False)
    assert report["test"]["top1"] > 0.95
    return Case("mlp", weights)


@pytest.fixture(scope="module")
def resnet():
    return Case("resnet20", bundled_checkpoint("digits_resnet20"))


@pytest.fixture(params=["mlp", "resnet"])
def case(request):
    return request.getfixturevalue(request.param)


class TestEndToEnd:
    def test_16_bits_are_nearly_float(self, case):
        assert case.error(16) < 5e-4
        with torch.no_grad():
            assert torch.equal(case.quantized[16](case.images).argmax(1), case.logits.argmax(1))

    def test_more_bits_are_nearer(self, case):
        errors = [case.error(bits) for bits in BITS]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[-2] / 20

    def test_4_and_8_bits_predict_as_float_does(self, case):
        float_top1 = pq.evaluate(case.model, case.test, progress=False).top1
        assert case.top1(8) >= float_top1 - 0.005
        assert case.top1(4) >= float_top1 - 0.02

    def test_2_bits_of_an_mlp_predict_almost_as_well(self, mlp):
        assert mlp.top1(2) >= 0.9

    @pytest.mark.parametrize("bits", BITS)
    def test_weights_have_so_many_levels(self, case, bits):
        for name, parameter in case.quantized[bits].named_parameters():
            quantizer = getattr(case.quantized[bits].get_submodule(name.rpartition(".")[0]), "weight_quantizer", None)
            if name.endswith(".weight") and quantizer.bits == bits:
                codes = quantizer.quantize(parameter.detach())
                assert max(len(channel.unique()) for channel in codes) <= 2**bits - 1

    @pytest.mark.parametrize("bits", BITS)
    def test_integers_compute_the_same(self, case, bits):
        model, few = case.quantized[bits], case.images[:64]
        with torch.no_grad():
            simulated, integers = model(few), IntegerModel(model)(few)
        assert torch.equal(integers.argmax(1), simulated.argmax(1))
        assert (integers - simulated).abs().max() <= 0.02 * simulated.abs().max()

    @pytest.mark.parametrize("bits", BITS)
    def test_files_give_them_back(self, case, bits, tmp_path):
        path = tmp_path / "m.safetensors"
        pq.save(case.quantized[bits], path)
        with torch.no_grad():
            assert torch.equal(pq.load(path)(case.images), case.quantized[bits](case.images))

    def test_files_take_their_bits(self, mlp, tmp_path):
        """235,146 parameters: 8-bit first and last layers at 2 and 4 bits, int32 biases, a scale a channel."""
        sizes = {}
        for bits in BITS:
            pq.save(mlp.quantized[bits], tmp_path / "m.safetensors")
            sizes[bits] = (tmp_path / "m.safetensors").stat().st_size
        assert sizes[2] < sizes[4] < sizes[8] < sizes[16] < 0.53 * 4 * 235_146
        assert sizes[8] < 0.28 * 4 * 235_146


class TestSixteenBits:
    """What is beyond 8 bits: sums beyond int32, biases on very fine grids, codes of more than a byte."""

    def wide(self, weights, activations, bias=0.0):
        net = sequence(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 256, 4))
        with torch.no_grad():
            net.body[3].weight.copy_(net.body[3].weight.abs() + 0.01)  # the sums only grow
            net.body[3].bias.fill_(bias)
        x = images(4, 3, 16, 16)
        recipe = pq.Recipe(weights=weights, activations=activations)
        return net, pq.quantize(net, recipe, x, progress=False), x

    def test_sums_go_beyond_int32(self):
        """Σ q_w·q_x of the linear layer, computed here in int64, is what the integer reference multiplies."""
        net, model, x = self.wide("int16", "int16")
        outputs, trace = IntegerModel(model).trace(x)
        layer, read = model.get_submodule("body.3"), trace.steps[-1].result
        offsets = read.codes - read.grid.zero_point.long()
        codes = layer.weight_quantizer.quantize(layer.weight.detach()).long()
        sums = offsets.flatten(1) @ codes.T + layer.bias_quantizer.quantize(layer.bias.detach()).long()
        assert sums.abs().max() > 2**39
        scale = layer.bias_quantizer.scale
        assert torch.equal(outputs, (sums.double() * scale.double()).float())
        assert torch.allclose(outputs, net(x), rtol=1e-3)

    @pytest.mark.parametrize(("weights", "activations"), [("int9", "int8"), ("int8", "int9"), ("int16", "int4")])
    def test_one_side_of_more_than_8_bits_is_enough(self, weights, activations):
        _, model, x = self.wide(weights, activations)
        assert torch.allclose(IntegerModel(model)(x), model(x), rtol=1e-5)

    @pytest.mark.parametrize("bias", [1.0, -50.0, 3000.0])
    def test_a_bias_beyond_int32_codes_coarsens_its_weights_grid(self, bias):
        """s_x·s_w of 16 and 16 bits is so fine that int32 codes reach a few units alone: the bias is never cut off."""
        net, model, x = self.wide("int16", "int16", bias)
        layer = model.get_submodule("body.3")
        assert layer.bias.detach() == pytest.approx(bias, rel=1e-6)
        assert torch.allclose(model(x), net(x), rtol=2e-3)
        assert torch.equal(IntegerModel(model)(x).argmax(1), model(x).argmax(1))

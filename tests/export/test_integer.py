"""The exact integer reference against NumPy's integers, and against the simulation on networks of every shape."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer import InputError
from pytorch_quantizer.data import calibration_loader, load_dataset, make_loader
from pytorch_quantizer.export import integer
from pytorch_quantizer.export.agreement import simulated_codes, tensor_agreement
from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.models import bundled_checkpoint, create_model, default_preprocessing

WIDTHS = [("int8", "int8"), ("int8", "int4"), ("int4", "int4"), ("int2", "int3"), ("int16", "int16"), ("int3", "int12")]


def quantized(net, weights="int8", activations="int4", batch=None, **fields):
    recipe = pq.Recipe(weights=weights, activations=activations, **fields)
    return pq.quantize(net, recipe, images(8, 3, 8, 8) if batch is None else batch, progress=False)


def convnet():
    return sequence(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=2)),
        *(nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


def residual(net, x):
    shortcut = F.relu(net.a(x))
    return net.fc(F.relu(net.b(shortcut) + shortcut).mean((2, 3)))


def agrees(model, batch):
    """Tensor by tensor, and at the end to what float32's noise and a few ties make of it."""
    for tensor in tensor_agreement(model, [batch]):
        assert tensor.only_ties, tensor
        assert tensor.differing <= 1e-3 * tensor.places + 1, tensor
    outputs, codes = simulated_codes(model, batch)
    integer, trace = IntegerModel(model).trace(batch, given=codes)
    torch.testing.assert_close(integer, outputs, rtol=1e-4, atol=1e-5)
    return trace


class TestArithmetic:
    def test_a_convolution_in_numpys_integers(self):
        """From codes to codes, every step written out in int64."""
        net = sequence(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        model = quantized(net)
        x = images(2, 3, 5, 5)
        _, codes = simulated_codes(model, x)
        _, trace = IntegerModel(model).trace(x, given=codes)
        first, second = trace.steps
        layer = model.get_submodule("body.0")
        weight = layer.weight_quantizer.quantize(layer.weight).numpy().astype(np.int64)
        bias = layer.bias_quantizer.quantize(layer.bias).numpy().astype(np.int64)
        offset = codes[first.name].numpy().astype(np.int64) - int(first.result.grid.zero_point)
        padded = np.pad(offset, ((0, 0), (0, 0), (1, 1), (1, 1)))
        sums = np.zeros((2, 4, 5, 5), dtype=np.int64)
        for n, c, i, j in np.ndindex(*sums.shape):
            sums[n, c, i, j] = (padded[n, :, i : i + 3, j : j + 3] * weight[c]).sum() + bias[c]
        multiplier = (layer.bias_quantizer.scale / second.result.grid.scale).numpy().reshape(-1, 1, 1)
        assert multiplier.dtype == np.float32
        code = np.rint(np.maximum(sums, 0).astype(np.float32) * multiplier) + int(second.result.grid.zero_point)
        expected = np.clip(code, second.result.grid.qmin, second.result.grid.qmax).astype(np.int64)
        assert np.array_equal(second.result.codes.numpy(), expected)

    def test_gemmlowps_multiplier_differs_by_a_code_at_the_most(self):
        model, x = quantized(convnet()), images(4, 3, 8, 8)
        _, codes = simulated_codes(model, x)
        floating, fixed = (
            IntegerModel(model, multiplier=form).trace(x, codes)[1] for form in ("float32", "fixed_point")
        )
        apart = [
            (a.result.codes - b.result.codes).abs().max() for a, b in zip(floating.steps, fixed.steps, strict=True)
        ]
        assert max(apart) <= 1
        assert all(step.before.eq(step.before.round()).all() for step in fixed.steps[1:3])  # integers all the way

    def test_sums_beyond_int32_are_requantized_in_float64(self):
        for bits, dtype in ((8, torch.float32), (16, torch.float64)):
            model = quantized(convnet(), f"int{bits}", f"int{bits}", first=f"int{bits}")
            _, trace = IntegerModel(model).trace(images(2, 3, 8, 8))
            assert trace.steps[1].before.dtype == dtype


class TestAgreesWithTheSimulation:
    @pytest.mark.parametrize(("weights", "activations"), WIDTHS)
    def test_widths(self, weights, activations):
        agrees(quantized(convnet(), weights, activations), images(4, 3, 8, 8))

    @pytest.mark.parametrize(
        "fields",
        [
            {"clip": "laplace", "activation_correction": "both"},
            {"weight_granularity": "per_tensor"},
            {"weight_symmetric": False},
            {"activation_symmetric": True},
            {"bias": "float32", "deployable": False},
            {"wide_residual": True},
        ],
    )
    def test_recipes(self, fields):
        net = network(
            residual,
            a=nn.Conv2d(3, 6, 3, padding=1),
            b=nn.Conv2d(6, 6, 3, padding=1),
            fc=nn.Linear(6, 4),
        )
        agrees(quantized(net, "int8", "int4", **fields), images(4, 3, 8, 8))

    @pytest.mark.parametrize(
        "make",
        [
            lambda: sequence(
                nn.Conv2d(3, 6, 3), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(36, 3)
            ),
            lambda: sequence(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(6, 4, 2)),
            lambda: sequence(
                nn.ConvTranspose2d(3, 6, 3, groups=3), nn.ReLU(), nn.AvgPool2d(2, padding=1), nn.Conv2d(6, 2, 1)
            ),
            lambda: sequence(nn.Conv2d(3, 6, 3), nn.Hardswish(), nn.Conv2d(6, 4, 1), nn.SiLU(), nn.Conv2d(4, 2, 1)),
            lambda: sequence(
                nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
            ),
            lambda: sequence(
                nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.PixelShuffle(1), nn.Conv2d(6, 2, 1)
            ),
        ],
    )
    def test_layers(self, make):
        agrees(quantized(make()), images(4, 3, 8, 8))

    def test_concatenations_splits_and_products(self):
        def forward(net, x):
            left, right = net.a(x), F.relu(net.b(x))
            both = torch.cat([left, right], 1)
            first, second = both.chunk(2, 1)
            gate = torch.sigmoid(net.g(both.mean((2, 3), keepdim=True)))
            return net.c(first * gate + second - 0.5 * first)

        parts = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 4, 1), "g": nn.Conv2d(8, 4, 1), "c": nn.Conv2d(4, 2, 1)}
        trace = agrees(quantized(network(forward, **parts)), images(4, 3, 8, 8))
        assert trace.floats == ["sigmoid"]  # and nothing else

    def test_matrix_products(self):
        def forward(net, x):
            q, k = net.q(x), net.k(x)
            return net.o(torch.matmul(torch.softmax(torch.matmul(q, k.transpose(1, 2)), -1), net.v(x)))

        parts = {name: nn.Linear(8, 8) for name in "qkvo"}
        tokens = images(4, 5, 8)
        trace = agrees(quantized(network(forward, **parts), batch=tokens), tokens)
        assert trace.floats == ["softmax"]

    def test_a_layer_called_on_two_scales_keeps_its_bias_in_float(self):
        net = network(lambda net, x: net.a(F.relu(net.a(x))), a=nn.Conv2d(3, 3, 1))
        assert agrees(quantized(net), images(4, 3, 8, 8)).floats == ["a.bias", "a_1.bias"]

    def test_a_tensor_times_itself(self):
        net = network(lambda net, x: net.b(net.a(x) * net.a(x)), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
        agrees(quantized(net), images(4, 3, 8, 8))

    def test_the_digits_resnet20(self):
        net = create_model("resnet20", in_channels=1, checkpoint=bundled_checkpoint("digits_resnet20"))
        preprocessing = default_preprocessing("resnet20", "digits")
        digits = [load_dataset("digits", split=split, preprocessing=preprocessing) for split in ("test", "train")]
        x, _ = next(iter(make_loader(digits[0], 100)))
        calibration = calibration_loader(digits[1], 128, batch_size=128, seed=0)
        model = pq.quantize(net, "w8a4_aciq", calibration, progress=False)
        trace = agrees(model, x)
        assert not trace.floats
        outputs, _ = simulated_codes(model, x)
        assert (IntegerModel(model)(x).argmax(1) == outputs.argmax(1)).float().mean() >= 0.99


class TestWhatIsComputedInFloat:
    def test_is_listed(self):
        model = quantized(convnet(), overrides=[{"layers": "body.3", "weights": "float32"}], deployable=False)
        _, trace = IntegerModel(model).trace(images(2, 3, 8, 8))
        assert trace.floats == ["body.3", "body.5"]  # and its ReLU

    def test_codebooks_are(self):
        model = quantized(convnet(), "kmeans4", "int8", deployable=False)
        assert "body.3" in IntegerModel(model).trace(images(2, 3, 8, 8))[1].floats


class TestRefuses:
    def test_a_float_model(self):
        with pytest.raises(InputError, match="QuantizedModel"):
            IntegerModel(convnet())

    def test_an_unknown_multiplier(self):
        with pytest.raises(InputError, match="fixed_point"):
            IntegerModel(quantized(convnet()), multiplier="fixed")

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"activation_granularity": "per_channel", "deployable": False}, "deployable: true"),
            ({"statistics": "online", "deployable": False}, "statistics: offline"),
            ({"rounding": "stochastic", "deployable": False}, "half_even"),
        ],
    )
    def test_what_integer_kernels_do_not_run(self, fields, words):
        with pytest.raises(InputError, match=words):
            IntegerModel(quantized(convnet(), **fields))

    def test_sums_beyond_int32(self):
        model = quantized(sequence(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 2)))
        model.get_submodule("body.1").bias_quantizer.scale.fill_(1e-20)  # codes of the bias saturate at 2^31 − 1
        with pytest.raises(InputError, match=r"body\.1.*int32"):
            IntegerModel(model)(images(2, 3, 8, 8))


class TestAgreement:
    def test_names_what_differs_and_tells_ties_from_errors(self, monkeypatch):
        model, x = quantized(convnet()), images(4, 3, 8, 8)
        right = integer.codes_of

        def wrong(before, grid):
            """One code too many where v is far from a half, on the grid of one tensor."""
            off = (
                (before - before.round()).abs() < 0.1 if grid.bits == 4 else torch.zeros_like(before, dtype=torch.bool)
            )
            return (right(before, grid) + off).clamp(max=grid.qmax)

        monkeypatch.setattr(integer, "codes_of", wrong)
        found = {tensor.name: tensor for tensor in tensor_agreement(model, [x])}
        assert found["body.2"].differing > 0
        assert not found["body.2"].only_ties
        assert "0.4" in found["body.2"].why or "0.5" in found["body.2"].why
        assert all(tensor.why in ("the same", "ties") for name, tensor in found.items() if tensor.bits == 8)

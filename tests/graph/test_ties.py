"""No sum of a layer lies on a tie of the grid that reads it, so that simulation and integers round alike."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from networks import images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer.export.agreement import tensor_agreement
from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.graph import ties
from pytorch_quantizer.quantization.qparams import MAX_SCALE, MIN_SCALE, QParams

asked = ties.clearance_asked


def grid(scale, bits=4, zero_point=0):
    return QParams(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), bits, False, False, None)


def nearest_tie(scale, input_scale, output):
    """By brute force over every sum n in reach, in float64: the least distance of n·m from a half, for one scale."""
    multiplier = float(torch.tensor(input_scale) * scale / output.scale)
    lowest, highest = output.qmin - int(output.zero_point), output.qmax - int(output.zero_point)
    reach = max(abs(lowest), abs(highest)) + 1
    n = torch.arange(-int(reach / multiplier) - 2, int(reach / multiplier) + 3, dtype=torch.float64)
    v = (n * multiplier)[((n * multiplier) > lowest) & ((n * multiplier) < highest)]
    return float((v - v.floor() - 0.5).abs().min()) if len(v) else float("inf")


def moved(scale, input_scale, grids):
    return ties.clear_scale(scale, torch.tensor(input_scale), grids)


class TestScales:
    @pytest.mark.parametrize("zero_point", [0, 3, 255])
    @pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
    def test_no_sum_is_near_a_tie(self, bits, zero_point):
        """Multipliers m from 2^-11 to 4, among them many that have ties."""
        scale = torch.cat(
            [2.0 ** (torch.rand(300, generator=torch.Generator().manual_seed(0)) * 13 - 11), 0.5 ** torch.arange(11.0)]
        )
        output = grid(1.0, bits=bits, zero_point=min(zero_point, 2**bits - 1))
        before = torch.tensor([nearest_tie(s, 1.0, output) for s in scale])
        after = torch.tensor([nearest_tie(s, 1.0, output) for s in moved(scale, 1.0, [output])])
        assert (before < asked(bits)).sum() >= 10
        assert (after >= asked(bits)).all()

    @pytest.mark.parametrize(("input_scale", "output_scale"), [(0.9, 0.31), (1e-6, 3e-5), (7e3, 1e3)])
    def test_whatever_the_scales_are(self, input_scale, output_scale):
        scale = (
            (torch.rand(200, generator=torch.Generator().manual_seed(1)) * 0.02 + 0.001) * output_scale / input_scale
        )
        output = grid(output_scale, bits=8)
        assert min(nearest_tie(s, input_scale, output) for s in scale) < asked(8)
        assert min(nearest_tie(s, input_scale, output) for s in moved(scale, input_scale, [output])) >= asked(8)

    @pytest.mark.parametrize("bits", [2, 8])
    def test_scales_move_by_little(self, bits):
        scale = 2.0 ** (torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 16 - 14)
        change = (moved(scale, 1.0, [grid(1.0, bits=bits)]).double() / scale.double() - 1).abs()
        assert 0 < change.max() <= 2.01 / ties.largest_denominator(bits) < 0.0007

    def test_every_grid_that_reads_the_sums(self):
        scale = torch.rand(300, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.001
        grids = [grid(0.75), grid(0.31, bits=8), grid(0.2, bits=3)]
        one = moved(scale, 0.5, grids[1:2])
        assert min(nearest_tie(s, 0.5, grids[0]) for s in one) < asked(4)
        found = moved(scale, 0.5, grids)
        assert all(nearest_tie(s, 0.5, output) >= asked(output.bits) for s in found for output in grids)
        assert (found / scale - 1).abs().max() < 0.003

    def test_sums_finer_than_the_noise_keep_as_far_as_they_can(self):
        """Multiples of 1e-5 are at most 5e-6 from a tie that lies between two of them."""
        found = moved(torch.tensor([1e-5]), 1.0, [grid(1.0)])
        assert nearest_tie(found, 1.0, grid(1.0)) > 3e-6
        assert nearest_tie(torch.tensor([1e-5]), 1.0, grid(1.0)) < 1e-6

    @pytest.mark.parametrize(
        ("scale", "input_scale", "output_scale"),
        [
            *((1.2e-38, 1e-8, 0.02), (1e-37, 1e-8, 0.02), (1e-9, 1e-9, 1.0), (1e30, 1e9, 1e-3)),
            *((MIN_SCALE, 1e-30, 1e30), *((MIN_SCALE, 1e30, over * 1e-8) for over in (1.45, 1.7, 1.9, 2.35))),
            *((MAX_SCALE, 1e-30, over * 1e8) for over in (1.0, 1.1, 1.2, 1.3)),
        ],
    )
    def test_scales_at_the_ends_of_floats_stay_scales(self, scale, input_scale, output_scale):
        """Also where their products with others are beyond them."""
        found = moved(torch.tensor([scale, 0.01]), input_scale, [grid(output_scale, bits=8), grid(output_scale)])
        assert (found >= MIN_SCALE).all()
        assert (found <= MAX_SCALE).all()
        assert float((found[0].double() / scale - 1).abs()) < 1e-3

    def test_a_scale_is_the_same_alone_as_among_many(self):
        scale = torch.rand(3 * ties.AT_ONCE + 1, generator=torch.Generator().manual_seed(0)) * 0.01 + 0.001
        grids = [grid(0.75), grid(0.31, bits=8)]
        alone = torch.cat([moved(part, 0.5, grids) for part in scale.split(1)])
        assert torch.equal(moved(scale, 0.5, grids), alone)

    def test_one_scale_for_the_tensor(self):
        found = moved(torch.tensor(0.25), 1.0, [grid(1.0)])
        assert found.shape == ()
        assert float(found) != 0.25


def on_ties(fields=None, net=None):
    """A model, and images of which many make sums on ties: its first layer's are n/34 of the grid that reads them."""
    net = net or sequence(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        for name, layer in net.named_modules():
            if isinstance(layer, nn.Conv2d) and name in ("body.0", "a", "c"):
                layer.weight.copy_(torch.tensor([[127.0, 2.0], [127.0, 2.0]]).reshape(2, 2, 1, 1) / 8)
                layer.bias.zero_()
    x = torch.zeros(8, 2, 4, 4)
    x[:, 0], x[:, 1], x[0, 1] = 1, torch.tensor([13.0, 30.0, 47.0, 64.0]), 255  # 127 + 2·13 = 34·4.5
    x[0, 0] = 0
    return pq.quantize(net, pq.Recipe(**{"activations": "int4", "last": "int4"} | (fields or {})), x, progress=False), x


def nudged(scale, *_):
    """Every scale but the last moved; the one of a whole tensor, too."""
    return (scale.reshape(-1) * torch.linspace(1.0001, 1, scale.numel())).reshape(scale.shape)


def unmoved(*args, **kwargs):
    with patch("pytorch_quantizer.quantize.move_off_ties", lambda model: 0):
        return on_ties(*args, **kwargs)


def pooled(net, x):
    return F.relu(net.b(F.relu(F.max_pool2d(net.a(x), 2))))


def concatenated(net, x):
    return F.relu(net.b(torch.cat([F.relu(net.a(x)), F.relu(net.c(x))], 1)))


def shortcut(net, x):
    left = F.relu(net.a(x))
    return net.b(left) + left


def layers(**inputs):
    return {name: nn.Conv2d(count, 2, 1) for name, count in inputs.items()}


NETWORKS = {
    "sequence": None,
    "max-pool": network(pooled, **layers(a=2, b=2)),
    "concatenation": network(concatenated, **layers(a=2, c=2, b=4)),
    "residual": network(shortcut, **layers(a=2, b=2)),
}
FIELDS = {
    "per-channel": {},
    "per-tensor": {"weight_granularity": "per_tensor"},
    "affine": {"weight_symmetric": False},
    "wide residual": {"wide_residual": True},
    "8 bits": {"activations": "int8", "last": "int8"},
    "weights of 16 bits": {"weights": "int16"},
}


class TestModels:
    @pytest.mark.parametrize("fields", FIELDS)
    @pytest.mark.parametrize("net", NETWORKS)
    def test_no_sum_of_a_layer_lies_on_a_tie(self, net, fields):
        model, x = on_ties(FIELDS[fields], NETWORKS[net])
        _, trace = IntegerModel(model).trace(x)
        seen = 0
        for step, node in zip(trace.steps, quantizers(model), strict=True):
            if step.result.grid.bits > ties.MOST_BITS or not of_a_layer(model, node):
                continue
            v = step.before.double()
            inside = (v > step.result.grid.qmin - 40) & (v < step.result.grid.qmax + 40) & (v != 0)
            distance = (v - v.floor() - 0.5).abs()[inside]
            assert distance.min() > 0.9 * asked(step.result.grid.bits)
            seen += 1
        assert seen

    @pytest.mark.parametrize("fields", FIELDS)
    def test_codes_stay_and_weights_and_biases_lie_on_their_new_grids(self, fields):
        with patch.object(ties, "clear_scale", nudged):
            moved = on_ties(FIELDS[fields])[0]
        before, changed = unmoved(FIELDS[fields])[0], 0
        for name in ("body.0", "body.2"):
            new, old = moved.get_submodule(name), before.get_submodule(name)
            codes = new.weight_quantizer.quantize(new.weight)
            assert torch.equal(codes, old.weight_quantizer.quantize(old.weight))
            assert torch.equal(new.weight_quantizer.dequantize(codes), new.weight)
            assert torch.equal(new.bias_quantizer(new.bias), new.bias)
            scale = new.weight_quantizer.scale
            assert torch.equal(new.bias_quantizer.scale, new.bias_quantizer.input_scale * scale)
            torch.testing.assert_close(new.bias, old.bias, atol=float(new.bias_quantizer.scale.max()), rtol=0)
            changed += int((scale != old.weight_quantizer.scale).sum())
        assert changed

    def test_it_is_why_simulation_and_integers_agree(self):
        """The same network, left as it was, has sums on ties; those of the simulation are float32's."""
        model, x = unmoved()
        _, trace = IntegerModel(model).trace(x)
        first = trace.steps[1]
        assert ((first.before.double() - first.before.double().floor()) == 0.5).any()
        model, x = on_ties()
        assert all(tensor.differing == 0 for tensor in tensor_agreement(model, [x]) if tensor.bits == 4)

    def test_wider_grids_and_what_is_not_deployed_stay(self):
        for fields in ({"deployable": False}, {"activations": "int16", "last": "int16"}):
            recipe = pq.Recipe(**{"activations": "int4", **fields})
            net, x = sequence(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), images(4, 3, 4, 4)
            model = pq.quantize(net, recipe, x, progress=False)
            with patch("pytorch_quantizer.quantize.move_off_ties", lambda model: 0):
                untouched = pq.quantize(net, recipe, x, progress=False)
            for name, value in model.state_dict().items():
                assert torch.equal(value, untouched.state_dict()[name]), name


def quantizers(model):
    return [node for node in model.graph.nodes if str(node.target).startswith("quantizers.")]


def of_a_layer(model, node):
    """Whether what a quantizer reads are a layer's sums, as they are or after a ReLU."""
    source = node.args[0]
    while source.op != "placeholder" and not isinstance(module(model, source), nn.Conv2d):
        if source.op == "call_function" and source.target not in (F.relu, F.max_pool2d):
            return source.target is torch.cat
        source = source.args[0]
    return source.op != "placeholder"


def module(model, node):
    return model.get_submodule(node.target) if node.op == "call_module" else None

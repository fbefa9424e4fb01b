"""compare(): simulation, integer reference and ONNX Runtime on the same images; the first difference and its reason."""

import copy
import json
import sys

import pytest
import torch
from networks import images, network, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer import InputError
from pytorch_quantizer.experiments import comparing
from pytorch_quantizer.experiments.comparison import compare
from pytorch_quantizer.experiments.comparison_report import comparison_text, write_comparison
from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.export.onnx import export_onnx
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel


def quantized(net=None, **fields):
    recipe = pq.Recipe(**{"weights": "int8", "activations": "int8", **fields})
    return pq.quantize(net or convnet(), recipe, images(8, 3, 8, 8), progress=False)


def convnet():
    layers = (nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU())
    return sequence(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def labelled(count=6, seed=1):
    x = images(count, 3, 8, 8, seed=seed)
    return x, torch.arange(count) % 5


def integers(model, *batches):
    return compare(model, batches or [labelled()], onnxruntime=False, progress=False)


def rows(compared):
    return {tensor.name: tensor for tensor in compared.tensors}


@pytest.fixture(scope="module")
def model():
    return quantized()


@pytest.fixture(scope="module")
def runtime(model, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(model, path, images(2, 3, 8, 8))
    return OnnxRuntimeModel(path)


class TestWhatAgrees:
    def test_all_is_told(self, model):
        compared = integers(model, labelled(6), labelled(4, seed=2))
        x = torch.cat([labelled(6)[0], labelled(4, seed=2)[0]])
        y = torch.cat([labelled(6)[1], labelled(4, seed=2)[1]])
        assert compared.images == 10
        assert compared.predictions_agree == {"integer": 1.0, "onnxruntime": None}
        expected = (model(x).argmax(1) == y).double().mean().item()
        assert compared.top1 == {"simulated": expected, "integer": expected, "onnxruntime": None}
        assert compared.logits_apart["integer"] == (IntegerModel(model)(x) - model(x)).abs().max().item()
        assert compared.left_out == {"onnxruntime": "it was not asked for"}
        assert compared.floats == ()

    def test_a_row_a_tensor_in_the_order_of_execution(self, model):
        compared = integers(model)
        assert [(tensor.name, tensor.type) for tensor in compared.tensors] == [
            *(("x", "uint8"), ("body.1", "uint8"), ("body.3", "uint8"), ("body.4", "uint8"))
        ]
        assert [tensor.alone.places for tensor in compared.tensors] == [6 * 192, 6 * 216, 6 * 96, 6 * 6]

    def test_the_same_codes_everywhere_are_no_difference(self, model):
        compared = integers(model)
        assert compared.first_difference is None
        assert all(tensor.why == "the same" and not tensor.integer.differing for tensor in compared.tensors)
        assert compared.logits_why in ("the same", "float32's rounding")

    def test_images_without_labels(self, model):
        compared = integers(model, labelled()[0], (labelled()[0],))
        assert compared.images == 12
        assert set(compared.top1.values()) == {None}

    def test_a_tensor_by_itself_is_one_batch(self, model):
        x = labelled()[0]
        assert compare(model, x, onnxruntime=False, progress=False) == integers(model, x)

    def test_in_parts_that_fit_in_memory_as_at_once(self, model, monkeypatch):
        whole = integers(model)
        monkeypatch.setattr(comparing, "MEMORY", 2 * comparing.PLACE * (192 + 216 + 96 + 6) + 2)
        seen = []
        right = comparing.simulated_codes
        monkeypatch.setattr(comparing, "simulated_codes", lambda model, x: seen.append(len(x)) or right(model, x))
        assert integers(model) == whole
        assert seen == [2, 2, 2]

    def test_in_eval_mode_and_left_as_it_came(self):
        model = quantized(sequence(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Dropout(0.9), nn.Flatten(), nn.Linear(216, 5)))
        assert integers(model.train()).first_difference is None
        assert model.training

    def test_what_is_computed_in_float_is_told(self):
        net = sequence(nn.Conv2d(3, 6, 3), nn.SiLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        compared = integers(quantized(net), labelled()[0])
        assert compared.floats == ("body.1",)
        assert "computed in float by the integer reference too: body.1" in comparison_text(compared)


BROKEN = {
    "a weight off its grid": (
        *(lambda model: model.get_submodule("body.2").weight.data.mul_(1.1), "body.3"),
        "body.2's weights lie up to",
    ),
    "a scale changed": (
        *(lambda model: model.get_submodule("quantizers.body_1").scale.mul_(1.25), "body.3"),
        "body.2's bias lies on another grid than its sums s_x·s_w, by a factor of up to 1.25",
    ),
    "a quantizer that doesn't": (
        *(lambda model: setattr(model.get_submodule("quantizers.body_1"), "forward", lambda x: x), "body.3"),
        "the simulation's values of body.1 do not lie on its grid",
    ),
}


class TestWhatIsBroken:
    @pytest.mark.parametrize("what", BROKEN)
    def test_is_the_first_difference_with_its_reason(self, model, what):
        harm, tensor, reason = BROKEN[what]
        broken = copy.deepcopy(model)
        harm(broken)
        compared = integers(broken)
        first = compared.first_difference
        assert (first.model, first.beside, first.tensor) == ("integer", "simulated", tensor)
        assert first.position == list(rows(compared)).index(tensor) + 1
        assert reason in first.why
        assert "of a code from a tie" in first.why
        assert (first.differing, first.most) == (
            rows(compared)[tensor].alone.differing,
            rows(compared)[tensor].alone.most,
        )
        assert reason in rows(compared)[tensor].why

    def test_what_comes_after_differs_but_not_by_its_own_doing(self, model):
        broken = copy.deepcopy(model)
        broken.get_submodule("body.0").weight.data.mul_(1.1)
        found = rows(integers(broken))
        assert found["body.1"].alone.differing > 0
        assert found["body.3"].alone.differing == 0 < found["body.3"].integer.differing
        assert found["body.3"].why == "the same"

    def test_the_last_layer_has_no_codes_but_logits(self, model):
        broken = copy.deepcopy(model)
        broken.get_submodule("body.6").weight.data.mul_(1.1)
        compared = integers(broken)
        assert compared.first_difference is None
        assert compared.logits_why.startswith("body.6's weights lie up to")
        assert compared.logits_apart["integer"] > 1e-3

    def test_ties_are_told_from_errors(self):
        """Sums on ties exactly, 8-bit codes of one weight put on a grid twice as coarse; then a little above."""
        model = quantized(sequence(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 8), nn.Flatten()))
        layer, grid = model.get_submodule("body.0"), model.get_submodule("quantizers.body_1")
        weight, read = layer.weight_quantizer, model.get_submodule("quantizers.x")
        read.scale.fill_(2.0**-4)
        weight.scale.fill_(2.0**-6)
        codes = torch.zeros_like(layer.weight)
        codes[:, 0] = 1
        layer.weight.data = codes * 2.0**-6
        layer.bias_quantizer = type(layer.bias_quantizer)(read.scale, weight.scale)
        layer.bias.data.zero_()
        grid.scale.fill_(2.0**-9)
        assert integers(model).first_difference is None  # both round half to even
        noisy = copy.deepcopy(model)
        noisy.get_submodule("body.0").weight.data.mul_(1 + 2.0**-22)
        first = integers(noisy).first_difference
        assert (first.tensor, first.most, first.why) == ("body.1", 1, "ties")
        assert first.from_tie == 0
        assert "ties" in comparison_text(integers(noisy))

    def test_the_earliest_of_two(self, model):
        broken = copy.deepcopy(model)
        broken.get_submodule("body.2").weight.data.mul_(1.1)
        broken.get_submodule("body.0").weight.data.mul_(1.1)
        compared = integers(broken)
        assert compared.first_difference.tensor == "body.1"
        assert "body.2's weights" in rows(compared)["body.3"].why


class TestOnnxRuntime:
    def test_is_exported_for_the_occasion(self, model):
        pytest.importorskip("onnxruntime")
        compared = compare(model, [labelled()], progress=False)
        assert compared.predictions_agree == {"integer": 1.0, "onnxruntime": 1.0}
        assert compared.top1["onnxruntime"] == compared.top1["simulated"]
        assert compared.left_out == {}
        assert compared.exported.label == "integer"
        assert {"body.0", "body.2", "body.6"} <= set(compared.exported.operators.table["name"])
        assert rows(compared)["body.3"].onnxruntime == rows(compared)["body.3"].integer
        assert "ONNX Runtime against integer reference: the same codes in every tensor" in comparison_text(compared)

    def test_another_models_file_is_the_first_difference(self, model, runtime):
        """Integers follow the simulation; what was exported before the change does not."""
        changed = copy.deepcopy(model)
        layer = changed.get_submodule("body.2")
        layer.weight.data.copy_(layer.weight_quantizer.dequantize(-layer.weight_quantizer.quantize(layer.weight)))
        compared = compare(changed, [labelled()], onnxruntime=runtime, progress=False)
        first = compared.first_difference
        assert (first.model, first.beside, first.tensor, first.position) == ("onnxruntime", "simulated", "body.3", 3)
        assert "from a tie" in first.why
        assert "the integer reference has" not in first.why
        assert not rows(compared)["body.1"].onnxruntime.differing
        assert [(found.model, found.beside) for found in compared.differences] == [
            *(("onnxruntime", "simulated"), ("onnxruntime", "integer"))
        ]

    def test_what_integers_do_too_is_not_its_fault(self, model, runtime):
        broken = copy.deepcopy(model)
        broken.get_submodule("quantizers.body_1").forward = lambda x: x
        found = {
            found.model: found
            for found in compare(broken, [labelled()], onnxruntime=runtime, progress=False).differences
        }
        assert {(model, difference.beside) for model, difference in found.items()} == {
            *(("integer", "simulated"), ("onnxruntime", "simulated"))
        }
        assert found["onnxruntime"].why.endswith("the integer reference has the same codes there")

    @pytest.mark.parametrize("exact", [False, True])
    def test_saturation_is_named_where_the_cpu_can(self, model, runtime, monkeypatch, exact):
        changed = copy.deepcopy(model)
        layer = changed.get_submodule("body.2")
        layer.weight.data.copy_(layer.weight_quantizer.dequantize(-layer.weight_quantizer.quantize(layer.weight)))
        monkeypatch.setattr(comparing, "adds_exactly", lambda: exact)
        monkeypatch.setitem(runtime.content, "weights", {"body.2": "int8"})
        first = compare(changed, [labelled()], onnxruntime=runtime, progress=False).first_difference
        assert first.why.startswith("body.2's sums u8·s8 can saturate at 16 bits") is not exact

    def test_is_left_out_where_it_is_not_installed(self, model, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnx", None)
        compared = compare(model, [labelled()], progress=False)
        assert "pip install 'pytorch-quantizer[onnx]'" in compared.left_out["onnxruntime"]
        assert compared.predictions_agree == {"integer": 1.0, "onnxruntime": None}
        assert "ONNX Runtime did not run: onnx is missing" in comparison_text(compared)
        with pytest.raises(InputError, match="pip install"):
            compare(model, [labelled()], onnxruntime=True, progress=False)


class TestReport:
    def test_in_a_line(self, model):
        assert str(integers(model)) == (
            "predictions agree on 6 images: integer 100.00%; first tensor that differs: none"
        )
        broken = copy.deepcopy(model)
        broken.get_submodule("body.0").weight.data.mul_(1.1)
        assert "first tensor that differs: body.1 (integer), " in str(integers(broken))

    def test_in_words(self, model):
        broken = copy.deepcopy(model)
        broken.get_submodule("body.0").weight.data.mul_(1.1)
        compared = integers(broken)
        first, text = compared.first_difference, comparison_text(compared)
        assert (
            "integer reference against simulation: the first tensor that differs is body.1, 2 of 4: "
            f"{first.differing} of 1,296 codes ({first.share:.1e}), by at most {first.most}: body.0's weights lie up to"
        ) in text
        assert "body.1 is no tie: body.0's weights" in text
        assert "ONNX Runtime did not run: it was not asked for" in text

    def test_a_long_table_is_cut(self, model, monkeypatch):
        monkeypatch.setattr("pytorch_quantizer.experiments.comparison_report.MOST_ROWS", 1)
        broken = copy.deepcopy(model)
        broken.get_submodule("body.0").weight.data.mul_(1.1)
        differing = sum(tensor.integer.differing > 0 for tensor in integers(broken).tensors)
        assert f"… and {differing - 1} more: compare.json holds them all" in comparison_text(integers(broken))

    def test_json(self, model, tmp_path):
        broken = copy.deepcopy(model)
        broken.get_submodule("body.0").weight.data.mul_(1.1)
        write_comparison(integers(broken), {"seed": 0}, tmp_path)
        record = json.loads((tmp_path / "compare.json").read_text())
        assert record.keys() >= {
            "seed",
            "images",
            "predictions_agree",
            "top1",
            "first_difference",
            "tensors",
            "left_out",
        }
        assert record["predictions_agree"].keys() == {"integer", "onnxruntime"}
        assert record["top1"].keys() == {"simulated", "integer", "onnxruntime"}
        assert record["first_difference"]["tensor"] == "body.1"
        row = record["tensors"][1]
        assert row.keys() == {"name", "type", "bits", "places", "alone", "integer", "onnxruntime", "why"}
        assert row["alone"]["share"] == row["alone"]["differing"] / row["places"]
        assert row["onnxruntime"] is None


class TestRefuses:
    @pytest.mark.parametrize(
        ("batches", "words"),
        [
            ([], "no images"),
            ([torch.empty(0, 3, 8, 8)], "no images"),
            ([torch.zeros(2, 3, 8, 8, dtype=torch.uint8)], "float images"),
            (["image"], "float images"),
            ([(*labelled(), 1)], "float images"),
            ([(labelled()[0], torch.zeros(2).long())], r"labels must be one an image, \[6\], got \[2\]"),
            ([(labelled()[0], 3)], r"got int"),
            ([(labelled()[0], torch.full((6,), 5))], "5 outputs.*class 5"),
            ([(labelled()[0], torch.full((6,), -1))], "5 outputs.*class -1"),
            ([images(6, 4, 8, 8)], r"can't run on images of shape \[N, 4, 8, 8\]"),
        ],
    )
    def test_what_cannot_be_compared(self, model, batches, words):
        with pytest.raises(InputError, match=words):
            compare(model, batches, onnxruntime=False, progress=False)

    def test_a_float_model(self):
        with pytest.raises(InputError, match="QuantizedModel"):
            integers(convnet())

    def test_what_integer_kernels_cannot_run(self):
        with pytest.raises(InputError, match="deployable: true"):
            integers(quantized(activation_granularity="per_channel", deployable=False))

    def test_outputs_that_are_no_logits(self):
        net = network(lambda net, x: net.b(net.a(x).relu()), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1))
        with pytest.raises(InputError, match=r"logits \[6, classes\], got \[6, 2, 8, 8\]"):
            integers(quantized(net))

    def test_logits_that_are_not_finite(self, model):
        broken = copy.deepcopy(model)
        broken.get_submodule("body.6").bias_quantizer = None
        broken.get_submodule("body.6").bias.data[0] = float("nan")
        with pytest.raises(InputError, match="NaN or infinite"):
            integers(broken)

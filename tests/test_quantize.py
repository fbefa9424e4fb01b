"""quantize(), the main job as a user calls it."""

import copy
import json
import re

import pytest
import torch
from networks import Untraceable, images, network, reading_float, sequence
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer import InputError, Override, QuantizedModel, Recipe, quantize
from pytorch_quantizer.models import create_model

FLOAT_ACTIVATIONS = Recipe(
    activations="float32", residual=None, first=None, last=None, bias="float32", deployable=False
)


def net():
    return sequence(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2)
    )


class TestCalibrationForms:
    @pytest.mark.parametrize(
        "form",
        [
            lambda x: [x],
            lambda x: [(x, 0)],
            lambda x: [[x, 0]],
            lambda x: iter([x]),
            lambda x: (batch for batch in [x]),
            lambda x: x,
        ],
        ids=["tensors", "tuples", "lists", "iterator", "generator", "one tensor is one batch"],
    )
    def test_all_give_the_same(self, form):
        expected = quantize(net(), "w8a4", [images()])(images())
        assert torch.equal(quantize(net(), "w8a4", form(images()))(images()), expected)

    def test_every_batch_counts_the_first_included(self):
        batches = [images() * 5, images(seed=2)]
        low, high = quantize(net(), "w8a8", iter(batches)).sites[3].quantizer.range()
        everything = torch.cat(batches)
        assert (low.item(), high.item()) == pytest.approx((everything.min().item(), everything.max().item()), abs=0.15)

    def test_repeats_to_the_bit(self):
        first, again = (quantize(net(), "w8a4_aciq", [images(), images(seed=2)]) for _ in range(2))
        assert torch.equal(first(images(seed=3)), again(images(seed=3)))
        assert first.summary() == again.summary()

    @pytest.mark.parametrize("calibration", [[], iter(())])
    def test_empty(self, calibration):
        with pytest.raises(InputError, match="the calibration set is empty"):
            quantize(net(), "w8a8", calibration)

    def test_missing(self):
        with pytest.raises(InputError, match="the recipe quantizes activations: give calibration="):
            quantize(net(), "w8a8")

    def test_no_image_in_it(self):
        with pytest.raises(InputError, match="no value was observed"):
            quantize(net(), "w8a8", [images()[:0]])

    def test_weights_alone_need_none(self):
        model = quantize(net(), FLOAT_ACTIVATIONS.replace(overrides=(Override("*", weights="int4"),)))
        assert {s.kind for s in model.sites if s.quantizer is not None} == {"weight"}
        assert model.get_submodule("body.0").weight[0].unique().numel() <= 16
        assert torch.equal(quantize(net(), model.recipe, [images()])(images()), model(images()))


class TestRecipes:
    def test_by_name_file_or_value(self, tmp_path):
        Recipe.load("w8a4").save(tmp_path / "r.yaml")
        expected = quantize(net(), Recipe.load("w8a4"), [images()])(images())
        assert torch.equal(quantize(net(), "w8a4", [images()])(images()), expected)
        assert torch.equal(quantize(net(), str(tmp_path / "r.yaml"), [images()])(images()), expected)

    def test_all_in_float_is_the_model(self):
        expected = net()(images())
        model = quantize(net(), FLOAT_ACTIVATIONS.replace(weights="float32"))
        torch.testing.assert_close(model(images()), expected, rtol=1e-5, atol=1e-5)
        assert all(site.is_float for site in model.sites)

    def test_more_bits_come_closer(self):
        x, expected = images(64, 3, 8, 8), net()(images(64, 3, 8, 8))
        errors = []
        for bits in (2, 4, 6, 8, 12):
            recipe = Recipe(weights=f"int{bits}", activations=f"int{bits}", residual=None, first=None, last=None)
            errors.append(float((quantize(net(), recipe, [x])(x) - expected).detach().abs().mean()))
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0] / 100


ONLINE = {"statistics": "online"}


class TestStatisticsFile:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "seen.json"
        quantize(net(), "w8a8", [images(), images(2, 3, 8, 8, seed=2)], statistics_file=path)
        return path

    def test_is_written_once_and_stands_for_the_images(self, path):
        written = path.read_bytes()
        assert json.loads(written)["images"] == 6
        expected = quantize(net(), "w8a8", [images(), images(2, 3, 8, 8, seed=2)])(images(seed=3))
        for calibration in (None, [images(seed=5) * 9]):
            model = quantize(net(), "w8a8", calibration, statistics_file=path)
            assert torch.equal(model(images(seed=3)), expected)
            assert path.read_bytes() == written

    def test_images_for_corrections_change_no_range(self, path):
        recipe = Recipe.load("w8a8").replace(activation_correction="both")
        others = [images(seed=5) * 9]
        plain, corrected = (quantize(net(), r, others, statistics_file=path) for r in ("w8a8", recipe))
        for site, other in zip(plain.sites, corrected.sites, strict=True):
            if site.is_activation and site.quantizer is not None:
                assert torch.equal(site.quantizer.scale, other.quantizer.scale)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"activation_correction": "both"}, "the recipe corrects what quantization shifts: give calibration="),
            ({"weight_clip": "output_mse"}, "the recipe chooses weights by their outputs: give calibration="),
            (
                {"activations": "int4", "mixed_precision": "activations"},
                r"how many values .* has isn't known without images: give calibration=",
            ),
            (
                {"activation_granularity": "per_channel", "deployable": False},
                r"the channels of x isn't known without images: give calibration=",
            ),
        ],
    )
    def test_what_it_does_not_tell_needs_images(self, tmp_path, changes, said):
        recipe, path = Recipe.load("w8a8").replace(**changes), tmp_path / "seen.json"
        quantize(net(), recipe, [images()], statistics_file=path)
        with pytest.raises(InputError, match=said):
            quantize(net(), recipe, statistics_file=path)

    def test_of_other_weights_is_refused(self, path):
        other = net()
        other.body[0].weight.data[0, 0, 0, 0] += 1e-4
        with pytest.raises(InputError, match="statistics of another model or of other weights"):
            quantize(other, "w8a8", [images()], statistics_file=path)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"clip": "minmax", "activation_granularity": "per_channel", "deployable": False}, "statistics of x:1"),
            ({"clip": "mse"}, "histogram of x"),
        ],
    )
    def test_that_lacks_what_the_recipe_needs_is_refused_also_where_there_are_images(self, path, changes, said):
        recipe = Recipe.load("w8a8").replace(**changes)
        expected = f"{path} holds no {said}, which this recipe needs"
        with pytest.raises(InputError, match=re.escape(expected)):
            quantize(net(), recipe, [images()], statistics_file=path)

    @pytest.mark.parametrize("changes", [dict.fromkeys(("activations", "first", "last"), "float32"), ONLINE])
    def test_of_nothing_is_neither_written_nor_asked_for(self, tmp_path, changes):
        recipe = Recipe(**changes, bias="float32", deployable=False)
        for _ in range(2):
            with pytest.raises(InputError, match="calibration observes no activation; leave it out"):
                quantize(net(), recipe, [images()], statistics_file=tmp_path / "s")
            assert not (tmp_path / "s").exists()


class TestNotes:
    def test_say_what_was_done_beside_quantizing(self):
        recipe = Recipe.load("w4a4_statistical").replace(equalize=True)
        model = quantize(net(), recipe, [images()], progress=False)
        steps = [note.partition(":")[0] for note in model.notes]
        assert steps == ["equalize", "activation_correction"]
        assert all(note in model.summary() for note in model.notes)

    def test_a_step_that_does_nothing_is_warned_of(self):
        recipe = Recipe(correction_source="analytic", activation_correction="mean", batch_norm_reestimation=True)
        plain = sequence(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        with pytest.warns(UserWarning, match="changed nothing") as caught:
            quantize(plain, recipe, [images()], progress=False)
        said = "was asked for and changed nothing in this network"
        assert [str(w.message) for w in caught] == [
            f"batch_norm_reestimation {said}",
            f"activation_correction {said}",
        ]


class TestModel:
    def test_is_left_as_it_was(self):
        model = net().train()
        model.body[1].eval()
        before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
        names = list(dict(model.named_modules()))
        quantize(model, "w8a4", [images()])
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert list(dict(model.named_modules())) == names
        assert model.body[2].inplace

    def test_calibration_images_are_left_as_they_were(self):
        x = images()
        quantize(sequence(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten()), "w8a8", [x])
        assert torch.equal(x, images())

    def test_nan_in_activations_names_the_tensor(self):
        broken = network(lambda net, x: net.b(net.a(x).log()), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3))
        with pytest.raises(InputError, match=r"^log: it holds NaN or infinite values$"):
            quantize(broken, "w8a8", [images()])

    def test_nan_in_weights_names_the_layer(self):
        broken = net()
        broken.body[3].weight.data[0, 0, 0, 0] = float("nan")
        with pytest.raises(InputError, match=r"body\.3\.weight holds 1 NaN or infinite value"):
            quantize(broken, "w8a8", [images()])

    def test_a_trace_that_computes_something_else_is_refused(self):
        def through_a_view(net, x):
            y = net.a(x)
            y.flatten(1).relu_()
            return net.b(y)

        net = network(through_a_view, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3))
        with pytest.raises(InputError, match=r"the traced graph of Network is off by"):
            quantize(net, "w8a8", [images()])

    def test_strict(self):
        odd = sequence(nn.Conv2d(3, 4, 3), Untraceable(), nn.Conv2d(4, 4, 3))
        with pytest.raises(InputError, match=r"--strict: .*'body\.1'"):
            quantize(odd, "w8a8", [images()], strict=True)
        assert isinstance(quantize(odd, "w8a8", [images()]), QuantizedModel)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_types_but_float32_are_refused(self, dtype):
        kind = str(dtype).removeprefix("torch.")
        with pytest.raises(InputError, match=rf"is {kind}; .* call model.float\(\) first"):
            quantize(net().to(dtype), "w8a8", [images().to(dtype)])

    def test_what_is_no_model_is_named(self):
        with pytest.raises(InputError, match="needs a model"):
            quantize(net().state_dict(), "w8a8", [images()])

    def test_channels_last(self):
        model, x = quantize(net(), "w8a4", [images()]), images()
        got = model(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-4)


class TestSimulation:
    def test_gradients_flow_to_the_input_and_the_weights(self):
        model = quantize(net(), "w8a8", [images()])
        x = images().requires_grad_()
        model(x).square().sum().backward()
        reference = images().requires_grad_()
        net()(reference).square().sum().backward()
        cosine = torch.cosine_similarity(x.grad.flatten(), reference.grad.flatten(), dim=0)
        assert cosine > 0.95
        assert model.get_submodule("body.0").weight.grad.abs().sum() > 0

    @pytest.mark.filterwarnings("ignore")
    def test_compiles_whole(self):
        model = quantize(net(), "w8a4", [images()])
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            torch.testing.assert_close(compiled(images(seed=4)), model(images(seed=4)), rtol=0, atol=1e-6)
        x, y = images().requires_grad_(), images().requires_grad_()
        compiled(x).sum().backward()
        model(y).sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-6)

    def test_in_inference_mode(self):
        model = quantize(net(), "w8a4", [images()])
        expected = model(images()).detach()
        with torch.inference_mode():
            assert torch.equal(model(images()), expected)

    @pytest.mark.parametrize("arch", ["resnet20", "squeezenet1_1"])
    def test_of_real_architectures_reads_no_float(self, arch):
        torch.manual_seed(0)
        side = 32 if arch == "resnet20" else 64
        model = quantize(create_model(arch, num_classes=10), "w8a4_aciq", [images(2, 3, side, side)])
        assert reading_float(model, images(2, 3, side, side, seed=2), arithmetic=False) == []

    def test_is_what_the_package_offers(self):
        assert pq.quantize is quantize
        assert pq.Recipe is Recipe


class TestMemory:
    """What correcting keeps is told by the recipe and the network, never by what else runs on the machine."""

    LARGEST = 4 * 3 * 64  # bytes of an image, the largest tensor
    ROOM = "pytorch_quantizer.calibration.correction_room"

    def corrected(self, monkeypatch):
        """The images that corrections get: 16 are there, of two batches."""
        seen = []
        monkeypatch.setattr(
            "pytorch_quantizer.calibration.corrections.Stepper.__init__",
            lambda self, graph, batches: seen.append(sum(map(len, batches))) or 1 / 0,
        )
        with pytest.raises(ZeroDivisionError):
            quantize(
                sequence(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3)),
                Recipe(activation_correction="mean"),
                [images(8, 3, 8, 8), images(8, 3, 8, 8)],
            )
        return seen

    def test_no_more_images_than_a_fixed_number_of_bytes_holds(self, monkeypatch):
        monkeypatch.setattr(f"{self.ROOM}.CORRECTION_BYTES", 6 * self.LARGEST * 11)
        with pytest.warns(UserWarning, match="correction_images: 11 are used"):
            assert self.corrected(monkeypatch) == [11]

    @pytest.mark.filterwarnings("error")
    def test_as_many_as_fit_without_a_word(self, monkeypatch):
        monkeypatch.setattr(f"{self.ROOM}.CORRECTION_BYTES", 6 * self.LARGEST * 16)
        monkeypatch.setattr(f"{self.ROOM}.free_memory", lambda device: 6 * self.LARGEST * 16)
        assert self.corrected(monkeypatch) == [16]

    def test_a_machine_without_room_is_an_error(self, monkeypatch):
        monkeypatch.setattr(f"{self.ROOM}.free_memory", lambda device: 6 * self.LARGEST * 15)
        with pytest.raises(InputError, match=r"correcting on 16 images takes.*set correction_images to 15 or fewer"):
            self.corrected(monkeypatch)

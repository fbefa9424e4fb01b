"""Models by name: every one that torchvision classifies with, built for any classes and channels, weights as asked."""

from urllib.error import URLError

import pytest
import torch
import torchvision.models

from pytorch_quantizer.data import Preprocessing
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.models import create_model, default_preprocessing, list_models

DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


class TestNames:
    def test_all_of_torchvisions_classification_models_and_no_quantized_one(self):
        names = list_models()
        assert {"resnet20", "resnet110", "mlp", "resnet50", "vgg16_bn", "vit_b_16", "swin_t"} <= set(names)
        assert len(names) == len(set(names)) == 6 + len(torchvision.models.list_models(module=torchvision.models))
        assert not [name for name in names if name.startswith("quantized")]

    def test_an_unknown_arch_is_answered_with_close_names(self):
        with pytest.raises(InputError, match=r"unknown arch 'resnet51': did you mean .*resnet50"):
            create_model("resnet51")
        with pytest.raises(InputError, match="unknown arch 'xyzzy': choose one of resnet20"):
            create_model("xyzzy")
        with pytest.raises(InputError, match="unknown arch 'resnet51'"):
            default_preprocessing("resnet51", "imagenet")


class TestConstruction:
    @pytest.mark.parametrize(
        "arch", ["alexnet", "densenet121", "efficientnet_b0", "mobilenet_v3_small", "squeezenet1_1"]
    )
    def test_any_classes_and_channels_in_eval_mode(self, arch):
        model = create_model(arch, num_classes=7, in_channels=2)
        assert not any(module.training for module in model.modules())
        with torch.inference_mode():
            assert model(torch.randn(1, 2, 64, 64)).shape == (1, 7)

    @pytest.mark.parametrize(("arch", "size"), [("googlenet", 64), ("inception_v3", 75)])
    def test_no_auxiliary_classifiers(self, arch, size):
        model = create_model(arch, num_classes=7)
        assert not [name for name, _ in model.named_parameters() if name.lower().startswith("aux")]
        with torch.inference_mode():
            assert model(torch.randn(1, 3, size, size)).shape == (1, 7)

    def test_random_weights_are_random(self):
        first, second = create_model("resnet20"), create_model("resnet20")
        assert not torch.equal(first.conv1.weight, second.conv1.weight)

    def test_random_weights_are_drawn_as_torchvision_draws_them(self):
        assert create_model("googlenet").conv3.conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
        squeeze = create_model("squeezenet1_1").features[3].expand3x3.weight  # kaiming_uniform: bound √(6 / fan in)
        assert squeeze.abs().max().item() == pytest.approx((6 / (16 * 9)) ** 0.5, rel=0.01)

    @pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"in_channels": 0}])
    def test_impossible_numbers(self, arguments):
        with pytest.raises(InputError, match="needs channels and classes"):
            create_model("resnet20", **arguments)


class TestPretrained:
    def test_the_papers_weights_are_loaded(self, monkeypatch):
        torch.manual_seed(0)
        published = torchvision.models.mobilenet_v3_small().state_dict()
        asked = []
        monkeypatch.setattr(DOWNLOAD, lambda url, **_: asked.append(url) or published)
        model = create_model("mobilenet_v3_small", pretrained=True)
        assert asked == [torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url]
        assert torch.equal(model.classifier[3].weight, published["classifier.3.weight"])

    def test_googlenet_comes_without_auxiliary_and_with_its_input_transform(self, monkeypatch):
        published = torchvision.models.googlenet(init_weights=False, aux_logits=True).state_dict()
        monkeypatch.setattr(DOWNLOAD, lambda url, **_: dict(published))
        model = create_model("googlenet", pretrained=True)
        assert model.transform_input
        assert torch.equal(model.conv1.conv.weight, published["conv1.conv.weight"])

    def test_a_failed_download_says_what_to_do(self, monkeypatch):
        def refuse(url, **_):
            raise URLError("no route to host")

        monkeypatch.setattr(DOWNLOAD, refuse)
        with pytest.raises(
            InputError, match=r"can't download .* resnet18 .*no route.*fetch https.*pth and pass --checkpoint"
        ):
            create_model("resnet18", pretrained=True)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"arch": "resnet20"}, "torchvision has no weights for resnet20: pass --checkpoint FILE"),
            ({"arch": "mlp"}, "torchvision has no weights for mlp"),
            ({"arch": "resnet18", "num_classes": 10}, "know 1,000 classes, asked for 3 and 10"),
            ({"arch": "resnet18", "in_channels": 1}, "read 3 channels"),
            ({"arch": "resnet18", "checkpoint": "x.pth"}, "not from both"),
        ],
    )
    def test_what_can_not_be_is_refused_before_any_download(self, monkeypatch, arguments, said):
        monkeypatch.setattr(DOWNLOAD, lambda url, **_: pytest.fail("downloaded"))
        with pytest.raises(InputError, match=said):
            create_model(pretrained=True, **arguments)


class TestPreprocessing:
    def test_imagenet_takes_the_published_resize_and_crop(self):
        assert default_preprocessing("resnet50", "imagenet") == Preprocessing(resize=256, crop=224)
        assert default_preprocessing("inception_v3", "folder") == Preprocessing(resize=342, crop=299)
        assert default_preprocessing("swin_t", "imagenet").interpolation == "bicubic"

    def test_cifar_resnets_read_small_images_at_their_own_size(self):
        assert default_preprocessing("resnet20", "cifar10") == Preprocessing()
        assert default_preprocessing("resnet20", "digits").mean == (0.305,)
        assert default_preprocessing("resnet20", "folder") == Preprocessing(resize=32, crop=32)

    def test_the_mlp_reads_28_pixels_whatever_the_data_set(self):
        for dataset in ("digits", "mnist", "cifar10", "imagenet", "folder"):
            assert default_preprocessing("mlp", dataset).crop == 28
        assert default_preprocessing("mlp", "digits").mean == (0.305,)
        with pytest.raises(InputError, match="mlp reads images of 28 pixels, asked for 32"):
            default_preprocessing("mlp", "digits", 32)

    def test_torchvisions_models_get_small_images_enlarged(self):
        assert default_preprocessing("vit_b_16", "mnist") == Preprocessing(224, 224, (0.1307,), (0.3081,))

    def test_a_size_that_was_asked_for_wins(self):
        assert default_preprocessing("resnet18", "mnist", 28) == Preprocessing(28, 28, (0.1307,), (0.3081,))
        assert default_preprocessing("resnet50", "imagenet", 64) == Preprocessing(resize=64, crop=64)

    @pytest.mark.parametrize("arch", list_models())
    def test_every_model_has_one_for_every_data_set(self, arch):
        for dataset in ("digits", "mnist", "cifar10", "imagenet", "folder"):
            default_preprocessing(arch, dataset)

    def test_an_unknown_data_set(self):
        with pytest.raises(InputError, match="unknown data set 'svhn'"):
            default_preprocessing("resnet20", "svhn")

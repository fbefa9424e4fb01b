"""A checkpoint loads whole, in the forms people have, or is refused with the keys that don't fit."""

import pickle

import pytest
import torch
import torchvision.models
from real_data import real_data
from safetensors import safe_open
from safetensors.torch import save_file

import pytorch_quantizer as pq
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.models import bundled_checkpoint, create_model, load_checkpoint


def equal(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return create_model("resnet20")


def saved(tmp_path, content, name="weights.pth"):
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


class TestForms:
    @pytest.mark.parametrize(
        "wrapped",
        [
            lambda state: state,
            lambda state: {"state_dict": state, "epoch": 3, "best_prec1": 91.7},
            lambda state: {"model": state, "optimizer": {"state": {}}},
            lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
            lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
            lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
            lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
            lambda state: {key: value.double() for key, value in state.items()},
        ],
        ids=["plain", "nested", "model", "module", "compiled", "compiled inside", "no batch counts", "float64"],
    )
    def test_of_torch(self, tmp_path, trained, wrapped):
        model = create_model("resnet20")
        load_checkpoint(model, saved(tmp_path, wrapped(trained.state_dict())))
        assert equal(model, trained)

    def test_of_safetensors(self, tmp_path, trained):
        path = saved(tmp_path, trained.state_dict(), "weights.safetensors")
        assert equal(create_model("resnet20", checkpoint=path), trained)

    def test_the_old_names_of_densenet(self, tmp_path):
        model = torchvision.models.densenet121(num_classes=3)
        old = {
            key.replace("norm1.", "norm.1.")
            .replace("conv2.", "conv.2.")
            .replace("norm2.", "norm.2.")
            .replace("conv1.", "conv.1.")
            if "denselayer" in key
            else key: value
            for key, value in model.state_dict().items()
        }
        assert old.keys() != model.state_dict().keys()
        assert equal(create_model("densenet121", num_classes=3, checkpoint=saved(tmp_path, old)), model)

    @pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
    def test_auxiliary_classifiers_are_left_out(self, tmp_path, arch):
        published = torchvision.models.get_model(arch, aux_logits=True, init_weights=False)
        model = create_model(arch, checkpoint=saved(tmp_path, published.state_dict()))
        assert torch.equal(model.fc.weight, published.fc.weight)
        assert model.transform_input

    def test_a_model_that_asks_for_its_layouts_version(self, tmp_path):
        """MNASNet refuses a state_dict that says no version, and safetensors can't say one."""
        model = torchvision.models.mnasnet0_5(num_classes=3)
        path = saved(tmp_path, model.state_dict(), "weights.safetensors")
        assert equal(create_model("mnasnet0_5", num_classes=3, checkpoint=path), model)

    def test_the_published_resnet20_as_it_is(self):
        path = real_data("cifar10/resnet20.th")
        published = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        own = create_model("resnet20", checkpoint=path).state_dict()
        assert all(torch.equal(own[key.removeprefix("module.")], value) for key, value in published.items())


class TestMisfits:
    def test_another_architecture_is_told_by_its_keys(self, tmp_path, trained):
        path = saved(tmp_path, trained.state_dict())
        said = r"weights\.pth doesn't fit CifarResNet: 60 missing \(layer1\.3\.bn1\.bias, .*, …\): pass the arch"
        with pytest.raises(InputError, match=said) as error:
            create_model("resnet32", checkpoint=path)
        assert "\n" not in str(error.value)

    def test_keys_that_the_model_lacks(self, tmp_path, trained):
        path = saved(tmp_path, trained.state_dict() | {"head.weight": torch.zeros(3)})
        with pytest.raises(InputError, match=r"1 unexpected \(head\.weight\)"):
            create_model("resnet20", checkpoint=path)

    def test_other_shapes(self, tmp_path, trained):
        path = saved(tmp_path, trained.state_dict())
        said = r"2 misshapen \(linear\.weight \[10, 64\] instead of \[7, 64\], linear\.bias \[10\] instead of \[7\]\)"
        with pytest.raises(InputError, match=said):
            create_model("resnet20", num_classes=7, checkpoint=path)

    def test_auxiliary_names_count_where_they_mean_nothing(self, tmp_path, trained):
        path = saved(tmp_path, trained.state_dict() | {"aux1.weight": torch.zeros(3)})
        with pytest.raises(InputError, match="1 unexpected"):
            create_model("resnet20", checkpoint=path)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_a_quantized_model_s_file_is_told_by_what_it_is(tmp_path, trained, name):
    path = tmp_path / name
    pq.save(pq.quantize(trained, "dynamic_w8"), path)
    with pytest.raises(InputError, match=rf"{name} is a packed checkpoint .*which pq\.load reads: give"):
        create_model("resnet20", checkpoint=path)


class TestNoCheckpoints:
    @pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 broken", b"\x80\x02}q\x00."[:-1], b"\xff" * 64])
    def test_garbage_is_named(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} .*checkpoint") as error:
            create_model("resnet20", checkpoint=tmp_path / name)
        assert "\n" not in str(error.value)

    def test_a_truncated_file_is_named(self, tmp_path, trained):
        for name in ("weights.pth", "weights.safetensors"):
            path = saved(tmp_path, trained.state_dict(), name)
            path.write_bytes(path.read_bytes()[:-1000])
            with pytest.raises(InputError, match=f"{name} can't be read as a checkpoint"):
                create_model("resnet20", checkpoint=path)

    def test_a_missing_file_and_a_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"absent\.pth is not a file"):
            create_model("resnet20", checkpoint=tmp_path / "absent.pth")
        with pytest.raises(InputError, match="is not a file"):
            create_model("resnet20", checkpoint=tmp_path)

    def test_a_pickle_runs_no_code(self, tmp_path):
        class Payload:
            def __reduce__(self):
                return (open, (str(tmp_path / "written"), "w"))

        (tmp_path / "weights.pth").write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))
        with pytest.raises(InputError, match=r"weights\.pth .*could run code: save model\.state_dict\(\)"):
            create_model("resnet20", checkpoint=tmp_path / "weights.pth")
        assert not (tmp_path / "written").exists()

    def test_a_whole_model_is_refused(self, tmp_path, trained):
        with pytest.raises(InputError, match="more than weights"):
            create_model("resnet20", checkpoint=saved(tmp_path, trained))

    @pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], torch.zeros(3), {"state_dict": {}}])
    def test_a_file_without_a_state_dict(self, tmp_path, content):
        with pytest.raises(InputError, match="holds no state_dict"):
            create_model("resnet20", checkpoint=saved(tmp_path, content))


class TestBundled:
    def test_ships_and_says_what_it_is(self):
        with safe_open(bundled_checkpoint("digits_resnet20"), "pt") as file:
            assert '"arch": "resnet20", "dataset": "digits"' in file.metadata()["training"]

    def test_an_unknown_name(self):
        with pytest.raises(InputError, match="no bundled checkpoint 'digits': there is digits_resnet20"):
            bundled_checkpoint("digits")

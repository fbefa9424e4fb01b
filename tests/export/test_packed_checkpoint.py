"""Packed checkpoints: the same model back to the bit, as useful as it was, small, readable without us."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import Untraceable, images, network, sequence
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer import InputError
from pytorch_quantizer.evaluation import layer_table
from pytorch_quantizer.evaluation.size import size_bytes
from pytorch_quantizer.export import checkpoint
from pytorch_quantizer.export.integer import IntegerModel
from pytorch_quantizer.models import create_model

ROOT = Path(__file__).parents[2]
NOT_DEPLOYABLE = {"deployable": False}
RECIPES = [
    *({"weights": f"int{bits}", "activations": "int4"} for bits in range(1, 17)),
    {"weights": "int8", "activations": "int16", "weight_symmetric": False},
    {"weights": "int4", "activations": "int8", "clip": "laplace", "activation_correction": "both"},
    {"weights": "int4", "activations": "int4", "wide_residual": True, "equalize": True},
    *(
        {"weights": name, "activations": "int8", **NOT_DEPLOYABLE}
        for name in ("kmeans1", "kmeans3", "apot4", "pot3", "ternary", "binary", "fp8_e5m2", "mxfp6_e2m3", "mxint8")
    ),
    {"weights": "mxfp4", "activations": "mxfp8_e4m3", **NOT_DEPLOYABLE},
    {"activation_granularity": "per_channel", "activation_allocation": "bits", "weight_allocation": "bits"}
    | {"weights": "int3", "activations": "int3", **NOT_DEPLOYABLE},
    {"weights": "int3", "activations": "int4", "weight_allocation": "midtread", **NOT_DEPLOYABLE},
    {"weights": "int4", "activations": "int4", "weight_correction": "both", **NOT_DEPLOYABLE},
    {"weights": "int4", "activations": "int4", "statistics": "online", **NOT_DEPLOYABLE},
    {"weights": "int4", "activations": "int4", "rounding": "stochastic", **NOT_DEPLOYABLE},
    {"weights": "float32", "activations": "int4", **NOT_DEPLOYABLE},
    {"weights": "int4", "activations": "float32", **NOT_DEPLOYABLE},
]


def convnet(*extra):
    return sequence(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU6()),
        *(*extra, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


def quantized(net=None, **fields):
    fields = fields or {"weights": "int4", "activations": "int8"}
    return pq.quantize(net or convnet(), pq.Recipe(**fields), images(8, 3, 8, 8), progress=False)


def there_and_back(saved, path, **options):
    pq.save(saved, path)
    return pq.load(path, **options)


class TestRoundTrip:
    @pytest.mark.parametrize("fields", RECIPES, ids=lambda fields: "-".join(map(str, fields.values())))
    def test_the_same_model_to_the_bit(self, fields, tmp_path):
        model, x = quantized(**fields), images(4, 3, 8, 8)
        model(x)  # a stochastic quantizer goes on from where it is
        loaded = there_and_back(model, tmp_path / "m.safetensors")
        assert torch.equal(loaded(x), model(x))
        assert loaded.summary() == model.summary()
        assert loaded.recipe == model.recipe
        assert size_bytes(loaded) == size_bytes(model)
        assert loaded.calibration_images == model.calibration_images

    def test_a_second_time_gives_the_same_file(self, tmp_path):
        first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
        pq.save(there_and_back(quantized(), first), second)
        assert first.read_bytes() == second.read_bytes()

    def test_all_kinds_of_arguments(self, tmp_path):
        def forward(net, x):
            parts = net.a(x)[..., 1:].clamp(min=0, max=float("inf")).split([2, 2], dim=1)
            both = torch.cat((parts[0], parts[1].to(torch.float32)), 1)
            return net.b(both.reshape(both.shape[0], -1))

        model = quantized(network(forward, a=nn.Conv2d(3, 4, 1), b=nn.Linear(224, 3)))
        loaded = there_and_back(model, tmp_path / "m.safetensors")
        assert torch.equal(loaded(images(4, 3, 8, 8)), model(images(4, 3, 8, 8)))

    def test_parameters_and_buffers_of_the_network_itself(self, tmp_path):
        net = network(
            lambda n, x: n.a(x + n.shift) * n.gain,
            a=nn.Conv2d(3, 4, 1),
            shift=torch.ones(3, 1, 1),
            gain=nn.Parameter(torch.ones(4, 1, 1)),
        )
        model = quantized(net)
        loaded = there_and_back(model, tmp_path / "m.safetensors")
        assert torch.equal(loaded(images(4, 3, 8, 8)), model(images(4, 3, 8, 8)))


def used():
    return convnet(nn.Conv2d(8, 8, 1), nn.SiLU(), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    model = quantized(used(), weights="int4", activations="int4", activation_correction="mean")
    return model, there_and_back(model, tmp_path_factory.mktemp("use") / "m.safetensors")


def tied(weights):
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    model = network(lambda n, x: n.b(n.a(x).relu()), a=first, b=second)
    return quantized(model, weights=weights, activations="int8", deployable=False)


class TestTiedWeights:
    @pytest.mark.parametrize("weights", ["float32", "int4"])
    def test_come_back_at_both_places(self, weights, tmp_path):
        model = tied(weights)
        loaded = there_and_back(model, tmp_path / "m.safetensors")
        assert torch.equal(loaded(images(4, 3, 8, 8)), model(images(4, 3, 8, 8)))


class TestUse:
    """What is loaded does what the model that was saved does."""

    def test_tables_notes_and_digest(self, pair):
        model, loaded = pair
        assert loaded.table().equals(model.table())
        assert (loaded.notes, loaded.network) == (model.notes, model.network)
        assert loaded.network is not None

    def test_state_and_what_takes_gradients(self, pair):
        model, loaded = pair
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
        taking = [{name: p.requires_grad for name, p in each.named_parameters()} for each in pair]
        assert taking[0] == taking[1]

    def test_gradients(self, pair):
        found = []
        for model in map(copy.deepcopy, pair):
            x = images(2, 3, 8, 8).requires_grad_()
            model.train()(x).square().sum().backward()
            found.append([x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
        assert len(found[0]) > 5
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_evaluation_and_layers(self, pair):
        batch = [(images(8, 3, 8, 8), torch.zeros(8, dtype=torch.long))]
        results = [pq.evaluate(each, batch, progress=False) for each in pair]
        assert results[0].top1 == results[1].top1
        tables = [layer_table(each, used(), images(8, 3, 8, 8), progress=False) for each in pair]
        assert tables[0].equals(tables[1])

    def test_integers(self, pair):
        results = [IntegerModel(each)(images(2, 3, 8, 8)) for each in pair]
        assert torch.equal(*results)

    def test_copies(self, pair):
        model, loaded = pair
        for copied in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
            assert torch.equal(copied(images(2, 3, 8, 8)), model(images(2, 3, 8, 8)))
            assert copied.summary() == model.summary()

    def test_compiled(self, pair):
        model, loaded = pair
        compiled = torch.compile(loaded, backend="eager", fullgraph=True)
        assert torch.equal(compiled(images(2, 3, 8, 8)), model(images(2, 3, 8, 8)))

    def test_a_float_buffer_stays_a_buffer(self, tmp_path):
        net = network(lambda n, x: n.a(x * n.gain), a=nn.Conv2d(3, 4, 1), gain=torch.ones(3, 1, 1))
        loaded = there_and_back(quantized(net), tmp_path / "m.safetensors")
        assert "gain" in dict(loaded.named_buffers())


@torch.fx.wrap
def powered(x, exponent):
    return x**exponent


class TestForeignModules:
    def net(self, outputs=5, exponent=2):
        return network(
            lambda net, x: net.c(powered(net.b(net.a(x)), exponent).mean((2, 3))),
            **{"a": nn.Conv2d(3, 8, 3), "b": Untraceable(), "c": nn.Linear(8, outputs)},
        )

    def test_come_from_the_float_model(self, tmp_path):
        net = self.net()
        model = quantized(net)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        loaded, x = there_and_back(model, tmp_path / "m.safetensors", model=net), images(4, 3, 8, 8).abs()
        assert torch.equal(loaded(x), model(x))
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())

    def test_their_values_are_the_files(self, tmp_path):
        net, other = self.net(), self.net()
        with torch.no_grad():
            other.b.gain.fill_(3.0)
        model = quantized(net)
        loaded, x = there_and_back(model, tmp_path / "m.safetensors", model=other), images(4, 3, 8, 8).abs()
        assert torch.equal(loaded(x), model(x))
        assert other.b.gain == 3.0

    def test_without_it_one_error_names_them(self, tmp_path):
        pq.save(quantized(self.net()), tmp_path / "m.safetensors")
        with pytest.raises(InputError, match=r"2 module.*\(b, powered\).*model=float_model"):
            pq.load(tmp_path / "m.safetensors")

    def test_another_model_is_refused(self, tmp_path):
        pq.save(quantized(self.net()), tmp_path / "m.safetensors")
        with pytest.raises(InputError, match=r"not the one.*no 'b'"):
            pq.load(tmp_path / "m.safetensors", model=sequence(nn.Conv2d(3, 4, 1)))

    @pytest.mark.parametrize("change", [{"outputs": 6}, {"exponent": 3}])
    def test_another_shape_or_argument_is_refused(self, change, tmp_path):
        pq.save(quantized(self.net()), tmp_path / "m.safetensors")
        with pytest.raises(InputError, match=r"not the one.*others"):
            pq.load(tmp_path / "m.safetensors", model=self.net(**change))

    def test_what_is_no_network_is_refused(self, tmp_path):
        pq.save(quantized(), tmp_path / "m.safetensors")
        with pytest.raises(InputError, match=r"an nn\.Module, got str"):
            pq.load(tmp_path / "m.safetensors", model="resnet20")

    def test_a_model_that_isnt_needed_is_checked_too(self, tmp_path):
        pq.save(quantized(), tmp_path / "m.safetensors")
        pq.load(tmp_path / "m.safetensors", model=convnet())
        with pytest.raises(InputError, match=r"not the one"):
            pq.load(tmp_path / "m.safetensors", model=convnet(nn.ReLU()))


class TestSize:
    def test_codes_take_the_bytes_that_are_reported(self, tmp_path):
        for fields in RECIPES:
            model = quantized(**fields)
            pq.save(model, tmp_path / "m.safetensors")
            tensors = load_file(tmp_path / "m.safetensors")
            if fields.get("weight_correction") == "both":
                continue  # its weights lie on no grid
            held = sum(t.numel() * t.element_size() for name, t in tensors.items() if name != checkpoint.DESCRIPTION)
            assert held == size_bytes(model), fields

    def test_a_resnet20_at_2_4_and_8_bits(self, tmp_path):
        net = create_model("resnet20")
        save_file(net.state_dict(), tmp_path / "float.safetensors")
        whole = (tmp_path / "float.safetensors").stat().st_size
        for bits, most in ((8, 0.28), (4, 0.16), (2, 0.10)):
            model = pq.quantize(net, pq.Recipe(weights=f"int{bits}"), images(4, 3, 32, 32), progress=False)
            pq.save(model, tmp_path / "m.safetensors")
            assert (tmp_path / "m.safetensors").stat().st_size <= most * whole


class TestNumpyReader:
    def test_decodes_every_weight(self, tmp_path):
        model = quantized(weights="int3", activations="int8")
        pq.save(model, tmp_path / "m.safetensors")
        subprocess.run(
            [
                sys.executable,
                "-I",
                ROOT / "scripts" / "read_checkpoint.py",
                tmp_path / "m.safetensors",
                tmp_path / "m.npz",
            ],
            check=True,
            cwd=tmp_path,
        )
        read = np.load(tmp_path / "m.npz")
        parameters = dict(model.named_parameters())
        assert set(read.files) == set(parameters)
        for name, parameter in parameters.items():
            assert np.array_equal(read[name], parameter.detach().numpy()), name

    def test_is_30_lines_and_imports_nothing_of_ours(self):
        lines = (ROOT / "scripts" / "read_checkpoint.py").read_text().split('"""')[2].splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        assert {line.split()[1].split(".")[0] for line in imports} == {
            "json",
            "numpy",
            "pathlib",
            "struct",
            "sys",
            "zlib",
        }
        assert len([line for line in lines if line.strip() and line not in imports]) <= 30


class TestRefuses:
    def test_a_float_model(self, tmp_path):
        with pytest.raises(InputError, match="QuantizedModel"):
            pq.save(convnet(), tmp_path / "m.safetensors")

    def test_half_precision(self, tmp_path):
        with pytest.raises(InputError, match=r"weight is torch\.float16.*model\.float"):
            pq.save(quantized().half(), tmp_path / "m.safetensors")

    def test_a_file_that_is_cut_off(self, tmp_path):
        path = tmp_path / "m.safetensors"
        pq.save(quantized(), path)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(InputError, match="it is cut off, or no packed checkpoint of a quantized model"):
            pq.load(path)

    def test_a_failed_save_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "m.safetensors"
        pq.save(quantized(), path)
        before = path.read_bytes()

        def broken(tensors, path, metadata):
            Path(path).write_bytes(b"half a file")
            raise ZeroDivisionError

        monkeypatch.setattr(checkpoint, "save_file", broken)
        with pytest.raises(ZeroDivisionError):
            pq.save(quantized(weights="int2", activations="int2"), path)
        assert path.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["m.safetensors"]


def test_metadata_is_for_people(tmp_path):
    pq.save(quantized(), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="np") as file:
        assert set(json.loads(file.metadata()["pytorch_quantizer"])) == {"version", "checksum"}

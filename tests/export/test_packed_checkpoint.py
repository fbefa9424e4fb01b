"""Packed checkpoints: the same model back to the bit, small, readable without us, and no file that can do harm."""

import json
import random
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
from pytorch_quantizer.evaluation.size import size_bytes
from pytorch_quantizer.export import checkpoint
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

    def test_what_is_loaded_can_be_used_as_what_was_saved(self, tmp_path):
        model = there_and_back(quantized(), tmp_path / "m.safetensors")
        batch = [(images(8, 3, 8, 8), torch.zeros(8, dtype=torch.long))]
        assert pq.evaluate(model, batch, progress=False).samples == 8
        model(images(2, 3, 8, 8).requires_grad_()).sum().backward()


class TestForeignModules:
    def net(self):
        return convnet(Untraceable())

    def test_come_from_the_float_model(self, tmp_path):
        net = self.net()
        model = quantized(net)
        loaded, x = there_and_back(model, tmp_path / "m.safetensors", model=net), images(4, 3, 8, 8).abs()
        assert torch.equal(loaded(x), model(x))

    def test_without_it_one_error_names_them(self, tmp_path):
        pq.save(quantized(self.net()), tmp_path / "m.safetensors")
        with pytest.raises(InputError, match=r"body\.5.*model=float_model"):
            pq.load(tmp_path / "m.safetensors")

    def test_another_model_is_refused(self, tmp_path):
        pq.save(quantized(self.net()), tmp_path / "m.safetensors")
        with pytest.raises(InputError, match="not the one"):
            pq.load(tmp_path / "m.safetensors", model=sequence(nn.Conv2d(3, 4, 1)))


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

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(InputError, match="check the path"):
            pq.load(tmp_path / "none.safetensors")

    def test_other_safetensors(self, tmp_path):
        save_file(convnet().state_dict(), tmp_path / "float.safetensors")
        with pytest.raises(InputError, match="no packed checkpoint"):
            pq.load(tmp_path / "float.safetensors")

    def test_another_version(self, tmp_path):
        rewrite(tmp_path / "m.safetensors", version=2)
        with pytest.raises(InputError, match="version 2"):
            pq.load(tmp_path / "m.safetensors")

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


def rewrite(path, *, version=checkpoint.VERSION, change=None):
    """A file that was made on purpose: its checksum fits what it says."""
    pq.save(quantized(), path)
    tensors = load_file(path)
    if change is not None:
        content = checkpoint._unzipped(tensors[checkpoint.DESCRIPTION])
        change(content, tensors)
        packed = checkpoint.zlib.compress(json.dumps(content).encode())
        tensors[checkpoint.DESCRIPTION] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    said = json.dumps({"version": version, "checksum": checkpoint._checksum(tensors)})
    save_file(tensors, path, metadata={checkpoint.KEY: said})


def node_of(content, op):
    return next(entry for entry in content["graph"] if entry["op"] == op)


EVIL = {
    "an unknown function": lambda c, t: node_of(c, "call_module").update(op="call_function", target="os.system"),
    "a builtin": lambda c, t: node_of(c, "call_module").update(op="call_function", target="builtins.eval"),
    "an unknown method": lambda c, t: node_of(c, "call_module").update(op="call_method", target="__reduce__"),
    "an attribute": lambda c, t: node_of(c, "call_module").update(
        op="call_function", target="builtins.getattr", args={"tuple": [{"node": "x"}, "__class__"]}
    ),
    "an unknown module": lambda c, t: c["modules"]["body.0"].update({"class": "Popen"}),
    "an unknown quantizer": lambda c, t: next(iter(c["quantizers"].values())).update(type="Quantizer"),
    "a tensor too few": lambda c, t: t.pop(next(name for name in t if name.startswith("codes/"))),
    "a weight too few": lambda c, t: c["codes"].pop("body.0.weight"),
    "a shape that lies": lambda c, t: next(iter(c["codes"].values())).update(shape=[2**40, 2**40]),
    "another shape": lambda c, t: c["modules"]["body.0"]["arguments"].update(out_channels=9),
    "a node that isn't there": lambda c, t: node_of(c, "call_module").update(args={"tuple": [{"node": "nobody"}]}),
    "no output": lambda c, t: c["graph"].pop(),
    "an endless list": lambda c, t: c.update(notes=None),
    "a dtype that is none": lambda c, t: node_of(c, "call_module").update(kwargs={"dict": [["x", {"dtype": "load"}]]}),
    "a recipe that is none": lambda c, t: c["recipe"].update(weights="int99"),
}


class TestNoFileCanDoHarm:
    @pytest.mark.parametrize("what", EVIL)
    def test_made_on_purpose(self, what, tmp_path):
        rewrite(tmp_path / "m.safetensors", change=EVIL[what])
        with pytest.raises(InputError, match=r"m\.safetensors"):
            pq.load(tmp_path / "m.safetensors")

    @pytest.mark.parametrize("seed", range(4))
    def test_damaged_by_chance(self, seed, tmp_path):
        """Bytes flipped, the file cut, a header that lies: an InputError each time, unless the bytes are as before."""
        path, draw = tmp_path / "m.safetensors", random.Random(seed)
        pq.save(quantized(), path)
        whole = path.read_bytes()
        for _ in range(250):
            path.write_bytes(damaged(whole, draw))
            with pytest.raises(InputError, match=r"m\.safetensors"):
                pq.load(path)


def damaged(whole, draw):
    data = bytearray(whole)
    kind = draw.randrange(4)
    if kind == 0:
        for _ in range(draw.randrange(1, 9)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        del data[draw.randrange(len(data)) :]
    elif kind == 2:
        data[:8] = draw.choice([0, 2, len(data), 2**31, 2**63]).to_bytes(8, "little")
    else:
        at = draw.randrange(len(data))
        data[at : at + draw.randrange(1, 64)] = draw.randbytes(draw.randrange(64))
    return bytes(data) if data != whole else b""


def test_metadata_is_for_people(tmp_path):
    pq.save(quantized(), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="np") as file:
        assert set(json.loads(file.metadata()["pytorch_quantizer"])) == {"version", "checksum"}

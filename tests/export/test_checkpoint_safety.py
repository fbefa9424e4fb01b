"""No file does harm: damaged by chance or made on purpose, it ends in one error, in little memory, and runs nothing.

benchmarks/damaged_checkpoints.py does the same ten thousand times.
"""

import functools
import json
import os
import random
import struct
import tempfile
import zlib
from pathlib import Path

import pytest
import torch
from networks import Untraceable, images, sequence
from safetensors.torch import load_file, save_file
from torch import nn

import pytorch_quantizer as pq
from pytorch_quantizer import InputError
from pytorch_quantizer.export import checkpoint, graph_description, paths

OWNED = "PYTORCH_QUANTIZER_OWNED"  # an environment variable that code from a file would set
CODE = f"__import__('os').environ.__setitem__('{OWNED}', '1')"


def net():
    return sequence(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU6()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


@functools.cache
def saved(**fields):
    """The bytes of a sound file."""
    model = pq.quantize(net(), pq.Recipe(**fields), images(8, 3, 8, 8), progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        pq.save(model, path)
        return path.read_bytes()


def rewrite(path, change, *, version=checkpoint.VERSION, text=None, **fields):
    """A file that was made on purpose: its checksum fits what it says. text: in place of the JSON."""
    path.write_bytes(saved(**(fields or {"weights": "int4"})))
    tensors = load_file(path)
    content = checkpoint._unzipped(tensors[checkpoint.DESCRIPTION])
    change(content, tensors)
    write(path, content, tensors, version=version, text=text)


def write(path, content, tensors, *, version=checkpoint.VERSION, text=None):
    packed = zlib.compress(json.dumps(content).encode() if text is None else text)
    tensors[checkpoint.DESCRIPTION] = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    said = json.dumps({"version": version, "checksum": checkpoint._checksum(tensors)})
    save_file(tensors, path, metadata={checkpoint.KEY: said})


def unchanged(content, tensors):
    """Nothing."""


def call(content, **changes):
    """Change the graph's first call of a module."""
    next(entry for entry in content["graph"] if entry["op"] == "call_module").update(changes)


def conv(content):
    """What the first convolution is made with."""
    return content["modules"]["body.0"]["arguments"]


def quantizer(content, path="body.0.weight_quantizer"):
    return content["quantizers"][path]


def rename(content, old, new):
    """Move a module and its call elsewhere."""
    content["modules"][new] = content["modules"].pop(old)
    next(entry for entry in content["graph"] if entry["target"] == old).update(target=new)


def swap(content):
    """Let two neighbours read each other."""
    first, second = content["graph"][3:5]
    first["args"], second["args"] = ({"tuple": [{"node": entry["name"]}]} for entry in (second, first))


def nested(levels):
    value = {"node": "x"}
    for _ in range(levels):
        value = [value]
    return {"tuple": [value]}


GETATTR = {"op": "call_function", "target": "builtins.getattr"}
EVIL = {
    "an unknown function": lambda c, t: call(c, op="call_function", target="os.system"),
    "a builtin": lambda c, t: call(c, op="call_function", target="builtins.eval"),
    "an unknown method": lambda c, t: call(c, op="call_method", target="__reduce__"),
    "a method that writes": lambda c, t: call(c, op="call_method", target="numpy"),
    "an attribute": lambda c, t: call(c, **GETATTR, args={"tuple": [{"node": "x"}, "__class__"]}),
    "an attribute's name that is computed": lambda c, t: call(c, **GETATTR, args={"tuple": [{"node": "x"}] * 2}),
    "an unknown op": lambda c, t: call(c, op="call_os"),
    "an unknown module": lambda c, t: c["modules"]["body.0"].update({"class": "Popen"}),
    "an unknown quantizer": lambda c, t: quantizer(c).update(type="Quantizer"),
    "code for an input": lambda c, t: c["graph"][0].update(target=f"x={CODE}"),
    "an input with a default": lambda c, t: c["graph"][0].update(args={"tuple": [1]}),
    "code for an argument": lambda c, t: call(c, kwargs={"dict": [[f"inplace={CODE}, relu", False]]}),
    "code for a path": lambda c, t: rename(c, "body.1", f'body"){CODE.replace(".", "")}#'),
    "code for a node's name": lambda c, t: call(c, name=f"x\n{CODE}"),
    "a node named self": lambda c, t: call(c, name="self"),
    "a path that is the model's own": lambda c, t: rename(c, "body.1", "to_folder"),
    "a path that Python reads so": lambda c, t: rename(c, "body.1", "\uff54o_folder"),
    "a path that is no name": lambda c, t: rename(c, "body.1", "body.class"),
    "a path without an end": lambda c, t: rename(c, "body.1", ".".join("b" * 100)),
    "a module that isn't there": lambda c, t: call(c, target="body.nobody"),
    "a module that is a tensor": lambda c, t: call(c, target="body.0.weight"),
    "a tensor that isn't there": lambda c, t: call(c, op="get_attr", target="body.nobody", args={"tuple": []}),
    "a tensor too few": lambda c, t: t.pop("codes/body.0.weight/codes"),
    "a tensor too many": lambda c, t: t.update({"codes/body.1.weight/codes": torch.ones(3)}),
    "a tensor of no kind": lambda c, t: t.update(other=torch.ones(3)),
    "a weight too few": lambda c, t: c["codes"].pop("body.0.weight"),
    "bytes too many": lambda c, t: t.update({"codes/body.0.weight/codes": torch.zeros(999, dtype=torch.uint8)}),
    "a shape that lies": lambda c, t: c["codes"].update({"body.0.weight": [2**40, 2**40]}),
    "a negative shape": lambda c, t: c["codes"].update({"body.0.weight": [-8, -3, 3, 3]}),
    "another shape": lambda c, t: conv(c).update(out_channels=9),
    "a huge layer": lambda c, t: conv(c).update(out_channels=2**40),
    "a huge layer of nothing": lambda c, t: conv(c).update(out_channels=2**40, in_channels=0),
    "a layer where memory is": lambda c, t: conv(c).update(out_channels=2**40, device="cpu"),
    "a node that isn't there": lambda c, t: call(c, args={"tuple": [{"node": "nobody"}]}),
    "a cycle": lambda c, t: swap(c),
    "a node twice": lambda c, t: c["graph"].insert(2, c["graph"][1]),
    "no output": lambda c, t: c["graph"].pop(),
    "two outputs": lambda c, t: c["graph"].append(c["graph"][-1] | {"name": "output_1"}),
    "two inputs": lambda c, t: c["graph"].insert(1, c["graph"][0] | {"name": "y", "target": "y"}),
    "no graph": lambda c, t: c.update(graph=[]),
    "too many arguments": lambda c, t: call(c, args={"tuple": [{"node": "x"}] * 9}),
    "an argument nobody knows": lambda c, t: call(c, kwargs={"dict": [["out", {"node": "x"}]]}),
    "no arguments": lambda c, t: call(c, args={"tuple": []}),
    "arguments that are none": lambda c, t: call(c, args="x"),
    "arguments without an end": lambda c, t: call(c, args=nested(500)),
    "no notes": lambda c, t: c.update(notes=None),
    "notes for a terminal": lambda c, t: c.update(notes=["\x1b]0;title\x07"]),
    "a label for a terminal": lambda c, t: call(c, meta={"dict": [["label", "\x1b[2J"]]}),
    "another kind of site": lambda c, t: c["sites"][0].update(name=7),
    "a site's quantizer that isn't there": lambda c, t: c["sites"][0].update(quantizer="body.nobody"),
    "a field too many": lambda c, t: c["sites"][0].update(other=7),
    "a dtype that is none": lambda c, t: call(c, kwargs={"dict": [["x", {"dtype": "load"}]]}),
    "a recipe that is none": lambda c, t: c["recipe"].update(weights="int99"),
    "bits for another grid": lambda c, t: quantizer(c).update(bits=3),
    "bits that are none": lambda c, t: quantizer(c).update(bits=4.0),
    "an axis that isn't there": lambda c, t: quantizer(c).update(axis=7),
    "a narrow unsigned grid": lambda c, t: quantizer(c).update(signed=False, narrow=True),
    "a draw beyond 64 bits": lambda c, t: quantizer(c).update(drawn=2**64),
    "values of no domain": lambda c, t: quantizer(c)["domain"].update(support="x"),
    "a zero point of a symmetric grid": lambda c, t: t.update(
        {"grid/body.0.weight_quantizer/zero_point": torch.zeros(8, dtype=torch.int32)}
    ),
    "a scale of 0": lambda c, t: t["grid/body.0.weight_quantizer/scale"].zero_(),
    "a scale too few": lambda c, t: t.update({"grid/body.0.weight_quantizer/scale": torch.ones(7)}),
    "a bias on no grid": lambda c, t: quantizer(c, "body.0.bias_quantizer").update(input_scale=-1.0),
    "modules without an end": lambda c, t: c["modules"].update({f"m{i}": {} for i in range(2**14)}),
    "a table that is none": lambda c, t: c.update(modules=None),
}


@pytest.fixture(autouse=True)
def nothing_ran():
    yield
    assert os.environ.pop(OWNED, None) is None


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.safetensors"


class TestMadeOnPurpose:
    @pytest.mark.parametrize("what", EVIL)
    def test_one_error(self, what, path):
        rewrite(path, EVIL[what])
        with pytest.raises(InputError, match=r"m\.safetensors") as caught:
            pq.load(path)
        assert "\n" not in str(caught.value)

    def test_what_they_are_made_from_is_sound(self, path):
        rewrite(path, unchanged)
        pq.load(path)(images(2, 3, 8, 8))

    @pytest.mark.parametrize(
        "text",
        [
            *(b"[" * 100_000, b'{"graph": ' * 50_000, b"NaN", b"[]", b"7", b"", b'{"graph": 1e999}', b"\xff\xfe"),
            *(b" " * (checkpoint.MOST_TEXT + 1), b'{"modules": ' + b"9" * 5000 + b"}"),
        ],
        ids=range(10),
    )
    def test_a_description_that_is_none(self, text, path):
        rewrite(path, unchanged, text=text)
        with pytest.raises(InputError, match=r"m\.safetensors"):
            pq.load(path)

    def test_channels_of_no_bits_take_no_memory(self, path):
        """Codes of 0 bits are no bytes, however many: the layer's own size is what counts."""

        def change(content, tensors):
            content["modules"]["body.6"]["arguments"].update(in_features=2**34)
            content["codes"]["body.6.weight"] = [5, 2**34]
            tensors["codes/body.6.weight/codes"] = torch.zeros(0, dtype=torch.uint8)
            tensors["grid/body.6.weight_quantizer/bits"].zero_()
            tensors["grid/body.6.weight_quantizer/shift"] = torch.zeros(5)

        fields = {"weights": "int3", "weight_allocation": "bits", "deployable": False, "last": "int3"}
        rewrite(path, change, **fields)
        with pytest.raises(InputError, match="more than it can hold"):
            pq.load(path)

    @pytest.mark.parametrize("name", ["raised", "body_4"])
    def test_what_is_foreign_gets_no_values_from_a_file(self, name, path):
        """A function or a module of the user's own is called as the float model calls it, or not at all."""
        float_model = sequence(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), Raised(), Untraceable(), nn.Linear(256, 2))
        pq.save(pq.quantize(float_model, "w8a8", images(4, 3, 8, 8), progress=False), path)
        pq.load(path, model=float_model)
        tensors = load_file(path)
        content = checkpoint._unzipped(tensors[checkpoint.DESCRIPTION])
        entry = next(entry for entry in content["graph"] if entry["name"] == name)
        entry["args"]["tuple"][1:] = ["/etc/passwd"]
        write(path, content, tensors)
        with pytest.raises(InputError, match="otherwise than the float model"):
            pq.load(path, model=float_model)


@torch.fx.wrap
def raised(x, by):
    return x + by


class Raised(nn.Module):
    def forward(self, x):
        return raised(x, 1)


class TestHeaders:
    """What lies in the header of safetensors, whose own reader refuses it."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda h: h["description"].update(data_offsets=h["codes/body.0.weight/codes"]["data_offsets"]),
            lambda h: h["description"].update(data_offsets=[0, 2**60]),
            lambda h: h["description"].update(data_offsets=[-1, 9]),
            lambda h: h["description"].update(shape=[2**33, 2**33]),
            lambda h: h["description"].update(shape=[-1]),
            lambda h: h["description"].update(dtype="F99"),
            lambda h: h.update(other={"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}),
            lambda h: h.pop("description"),
            lambda h: h.pop("__metadata__"),
            lambda h: h["__metadata__"].update({checkpoint.KEY: "[" * 100_000}),
            lambda h: h["__metadata__"].update({checkpoint.KEY: "7"}),
            lambda h: h["__metadata__"].update({checkpoint.KEY: '{"version": 2}'}),
        ],
        ids=range(12),
    )
    def test_one_error(self, change, path):
        data = saved(weights="int4")
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        with pytest.raises(InputError, match=r"m\.safetensors"):
            pq.load(path)

    def test_another_version(self, path):
        rewrite(path, unchanged, version=1)
        with pytest.raises(InputError, match="version 1"):
            pq.load(path)

    def test_other_safetensors(self, path):
        save_file(net().state_dict(), path)
        with pytest.raises(InputError, match="no packed checkpoint"):
            pq.load(path)

    def test_a_missing_file(self, path):
        with pytest.raises(InputError, match="check the path"):
            pq.load(path)

    def test_a_device_that_isnt_there(self, path):
        path.write_bytes(saved(weights="int4"))
        with pytest.raises(InputError, match="device"):
            pq.load(path, device="cuda:99")


class TestDamagedByChance:
    @pytest.mark.parametrize("seed", range(3))
    def test_an_error_each_time(self, seed, path):
        """Bytes flipped, the file cut, a header that lies: no byte of a file is without meaning."""
        draw, whole = random.Random(seed), saved(weights="int4")
        for _ in range(100):
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


class TestLists:
    def test_hold_nothing_that_reads_files_or_runs_code(self):
        words = (
            "load",
            "save",
            "open",
            "exec",
            "eval",
            "import",
            "compile",
            "system",
            "file",
            "pickle",
            "apply",
            "set",
        )
        listed = [*graph_description.functions(), *graph_description.methods(), *graph_description.modules()]
        assert len(listed) > 200
        assert not [name for name in listed if any(word in name.lower() for word in words)]

    @pytest.mark.parametrize("name", ["", "a b", "a\n", "self", "class", "__a", "1", "\u00e4", None, "a=1"])
    def test_identifiers(self, name):
        with pytest.raises(InputError):
            paths.check_identifier(name)

    def test_paths_of_real_networks(self):
        for good in ("conv1", "layer1.0.conv1", "body.a-b", "blocks.0-1.w", "h\u00e4user.0"):
            assert paths.check_path(good) == good.split(".")

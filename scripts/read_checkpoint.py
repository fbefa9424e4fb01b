"""Reads the weights of a packed checkpoint with NumPy alone: python read_checkpoint.py MODEL.safetensors WEIGHTS.npz.

What is where: pytorch_quantizer/export/FORMAT.md. Integer weights, int32 biases and what is left in float.
"""

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

DTYPES = {"F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8", "U8": "u1", "I8": "i1", "BOOL": "?"}

_, source, target = sys.argv if len(sys.argv) == 3 else sys.exit("give MODEL.safetensors WEIGHTS.npz, two files")
data = Path(source).read_bytes()
(length,) = struct.unpack("<Q", data[:8])
header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
header.pop("__metadata__")
tensors = {
    name: np.frombuffer(body[slice(*entry["data_offsets"])], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    for name, entry in header.items()
}
description = json.loads(zlib.decompress(tensors["description"].tobytes()))

weights = {name.removeprefix("float/"): value for name, value in tensors.items() if name.startswith("float/")}
for name, shape in description["codes"].items():
    codes, quantizer = tensors[f"codes/{name}/codes"], description["quantizers"][f"{name}_quantizer"]
    if quantizer["type"] == "BiasQuantizer":
        scale = np.resize(tensors[f"grid/{name.removesuffix('.bias')}.weight_quantizer/scale"], shape)
        scale = (scale * np.float32(quantizer["input_scale"])).astype("f8")
        weights[name] = (codes * scale).astype("f4")
        continue
    if quantizer["type"] != "IntQuantizer":
        sys.exit(f"{name} is of {quantizer['type']}; this reader knows integers alone")
    bits, count = quantizer["bits"], int(np.prod(shape))
    stream = np.unpackbits(codes, bitorder="little")[: count * bits].reshape(count, bits).astype("i8")
    codes = (stream << np.arange(bits)).sum(1).reshape(shape)
    codes -= (codes >= 2 ** (bits - 1)) * quantizer["signed"] * 2**bits
    along = [-1 if quantizer["axis"] in (axis, axis - len(shape)) else 1 for axis in range(len(shape))]
    scale, zero = tensors[f"grid/{name}_quantizer/scale"], tensors.get(f"grid/{name}_quantizer/zero_point", np.zeros(1))
    offset = codes - zero.astype("i8").reshape(along if zero.size > 1 else -1)
    weights[name] = offset.astype("f4") * scale.reshape(along if scale.size > 1 else -1)
np.savez(target, **weights)  # type: ignore[arg-type]

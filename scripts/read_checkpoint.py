"""Reads the weights of a packed checkpoint with NumPy alone: python read_checkpoint.py MODEL.safetensors WEIGHTS.npz.

What is where: pytorch_quantizer/export/FORMAT.md. Integer weights, int32 biases and what is left in float.
"""

import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

DTYPES = {"F32": "<f4", "I32": "<i4", "I64": "<i8", "U8": "u1", "I8": "i1", "BOOL": "?"}

data = Path(sys.argv[1]).read_bytes()
(length,) = struct.unpack("<Q", data[:8])
header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
header.pop("__metadata__")
tensors = {
    name: np.frombuffer(body[slice(*entry["data_offsets"])], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    for name, entry in header.items()
}
description = json.loads(zlib.decompress(tensors["description"].tobytes()))

weights = {name.removeprefix("float/"): value for name, value in tensors.items() if name.startswith("float/")}
for name, entry in description["codes"].items():
    codes, quantizer = tensors[f"codes/{name}/codes"], description["quantizers"][entry["quantizer"]]
    if quantizer["type"] == "BiasQuantizer":
        layer = name.removesuffix(".bias")
        scale = np.float32(quantizer["input_scale"]) * tensors[f"grid/{layer}.weight_quantizer/scale"]
        weights[name] = (codes.astype("f8") * scale.astype("f8")).astype("f4")
        continue
    bits, count = quantizer["bits"], int(np.prod(entry["shape"]))
    stream = np.unpackbits(codes, bitorder="little")[: count * bits].reshape(count, bits).astype("i8")
    codes = (stream << np.arange(bits)).sum(1)
    codes -= (codes >= 2 ** (bits - 1)) * quantizer["signed"] * 2**bits
    scale, zero = (tensors.get(f"grid/{entry['quantizer']}/{part}", np.zeros(1)) for part in ("scale", "zero_point"))
    along = [-1 if axis == quantizer["axis"] else 1 for axis in range(len(entry["shape"]))]
    offset = codes.reshape(entry["shape"]) - zero.astype("i8").reshape(along if zero.size > 1 else -1)
    weights[name] = offset.astype("f4") * scale.reshape(along if scale.size > 1 else -1)
np.savez(sys.argv[2], **weights)  # type: ignore[arg-type]

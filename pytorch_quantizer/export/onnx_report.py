"""What ONNX Runtime made of an exported file, read from the graph that it runs: which operations are in integers."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pytorch_quantizer.export.onnx_file import read_content
from pytorch_quantizer.export.onnx_packages import package
from pytorch_quantizer.export.onnx_session import session

INTEGER = {"QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "DynamicQuantizeMatMul", "NhwcMaxPool"}
INTEGER |= {"DynamicQuantizeLSTM"}
SUFFIX = r"(_token_\d+|_nchwc)*"  # what the runtime puts behind the name of a node that it replaced
NOT_FOUND = "part of another"
SHOWN = 4  # names of a kind in what people read
LAYERS = ("convolution", "linear", "recurrent")


@dataclass(frozen=True)
class OperatorReport:
    """table: a row for each layer, arithmetic operation and pooling of the network: name, kind, operator (in the file),
    ran (the operator that ONNX Runtime runs in its place), integer (whether on codes).
    """

    table: pd.DataFrame

    @property
    def runs_in_integers(self) -> bool:
        """Whether every layer and every addition does."""
        return not self.floats

    @property
    def floats(self) -> list[str]:
        """The layers and additions that run in float."""
        counted = self.table[self.table["kind"].isin([*LAYERS, "addition"])]
        return [str(name) for name in counted[~counted["integer"]]["name"]]

    def __str__(self) -> str:
        counts = self.table.groupby("kind", sort=False)["integer"].agg(["sum", "size"])
        lines = [f"{kind}: {row['sum']} of {row['size']} in integers" for kind, row in counts.iterrows()]
        left = self.table[~self.table["integer"]]
        for (kind, ran), rows in left.groupby(["kind", "ran"], sort=False):
            lines.append(f"in float ({kind}, as {ran}): {_few(list(rows['name']))}")
        return "\n".join(lines)


def _few(names: list[str]) -> str:
    """The first of many names."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def operator_report(path: str | Path, *, threads: int = 1) -> OperatorReport:
    """Read which operators run from ONNX Runtime's optimized graph, on this machine.

    Raises InputError for a file that export_onnx didn't write, and where onnxruntime is missing.
    """
    onnx, nodes = package("onnx"), read_content(path)["nodes"]
    written = {node.name: node.output[0] for node in onnx.load(str(path)).graph.node}
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        session(Path(path), threads, optimized)
        graph = onnx.load(str(optimized)).graph
    running = {re.sub(f"{SUFFIX}$", "", node.name): node for node in graph.node}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    codes = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    found = {name: running.get(name, running.get(written[name])) for name in nodes}  # some are named by their output
    rows = [_row(name, node, found[name], types, codes) for name, node in nodes.items()]
    return OperatorReport(pd.DataFrame(rows, columns=["name", "kind", "operator", "ran", "integer"]))


def _row(name: str, node: dict[str, str], ran: Any, types: dict[str, int], codes: set[int]) -> dict[str, Any]:
    row = {"name": name, "kind": node["kind"], "operator": node["operator"]}
    if ran is None:
        return row | {"ran": NOT_FOUND, "integer": False}
    integer = ran.op_type in INTEGER or ran.op_type.startswith("QLinear")
    integer = integer or any(types.get(output) in codes for output in ran.output)
    inside = [step.op_type for entry in ran.attribute if entry.name == "body" for step in entry.g.node]  # of a Scan
    products = [operator for operator in inside if operator in INTEGER]
    ran_as = f"{ran.op_type} of {', '.join(products)}" if products else ran.op_type
    return row | {"ran": ran_as, "integer": integer or bool(products)}

"""What an ONNX export is traced from, and what is known of it. onnx_rewrite.py makes it of a simulated model."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx


@dataclass
class ExportForm:
    """What is exported. graph: traced by torch.onnx; its modules' paths are what ONNX nodes can be told by.

    operations: path of a layer, an arithmetic operation or a pooling → its label and kind. weights: layer → the type
    that its weight is stored in. simulated: tensor or layer → why no integer kernel computes it. floats: layer → why
    its weight is stored in float32.
    """

    graph: fx.GraphModule
    operations: dict[str, tuple[str, str]] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    simulated: dict[str, str] = field(default_factory=dict)
    floats: dict[str, str] = field(default_factory=dict)

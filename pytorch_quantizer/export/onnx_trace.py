"""torch.onnx's part of the export: the network as it traces it, quietly; where it can't, one error with the reason.
What is traced is onnx_rewrite.py's form, what becomes of it onnx.py's business.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.export.onnx_form import ExportForm
from pytorch_quantizer.export.onnx_modules import OPSET
from pytorch_quantizer.graph.quantized_model import QuantizedModel

INPUT, OUTPUT = "images", "logits"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal


def traced(form: ExportForm, model: QuantizedModel, example: Tensor) -> Any:
    """What torch.onnx makes of the form, any number of images in a batch. example: [N, …]; model: what it is of.

    Raises InputError where it can't, which names the modules that may be why.
    """
    pair = example[:1].expand(2, *example.shape[1:]).contiguous()  # torch.export takes a batch of one for a constant
    graph = form.graph.eval()  # its own mode; its modules, some of them the model's, are in it
    try:
        with _quiet():
            return torch.onnx.export(
                graph,
                (pair,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(f"torch.onnx can't export this network: {_reason(error)}{_remedy(model)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of what torch warns of, prints and logs, as the graph of each attempt; what it raises says why."""
    logged = logging.root.manager.disable
    logging.disable(max(logged, logging.WARNING))
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")  # of its own deprecations
            yield
    finally:
        logging.disable(logged)


def _reason(error: BaseException) -> str:
    """The first line of what was raised first: the exporter's own text is of its steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    return COLOURS.sub("", first_line(error if isinstance(error, Exception) else Exception(error))).rstrip(". ")


def _remedy(model: QuantizedModel) -> str:
    """Which modules are exported as they stand, as capture couldn't enter them, and what to change in these."""
    opaque = _opaque(model)
    if not opaque:
        return ""
    named = ", ".join(f"{name} ({type(module).__name__})" for name, module in opaque.items())
    which, forward = ("it stands", "its forward") if len(opaque) == 1 else ("they stand", "their forward")
    return (
        f"; {named} couldn't be captured and would be exported as {which}: take branches and loops that depend on "
        f"values out of {forward} (torch.where in place of if), or export the network without"
    )


def _opaque(model: QuantizedModel) -> dict[str, nn.Module]:
    """The modules that capture couldn't enter; batch norms that can't be folded are listed like them."""
    modules = dict(model.named_modules())
    found = {site.node: modules[site.node] for site in model.sites if site.kind == "module" and site.node in modules}
    return {name: module for name, module in found.items() if not isinstance(module, _BatchNorm)}

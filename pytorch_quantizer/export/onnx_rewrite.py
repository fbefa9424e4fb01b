"""A simulated model rewritten into the form that torch.onnx exports and integer kernels recognise; the same results.
What is done in which order; each rewriting is in a file of its own, and says there why it changes no code.
"""

from __future__ import annotations

from torch import fx

from pytorch_quantizer.export.onnx_averages import replace_averages
from pytorch_quantizer.export.onnx_dynamic import dynamic_form
from pytorch_quantizer.export.onnx_form import ExportForm
from pytorch_quantizer.export.onnx_grids import enter_grids_early, repeat_grids, replace_quantizers
from pytorch_quantizer.export.onnx_layers import export_layers, export_weight
from pytorch_quantizer.export.onnx_operations import name_operations
from pytorch_quantizer.graph.fuse import copy_of
from pytorch_quantizer.graph.quantized_model import QuantizedModel


def export_form(model: QuantizedModel, asked: str, *, exact: bool) -> ExportForm:
    """The model in the form to export; it shares no module with ``model`` that it changes.

    asked, exact: of onnx_types.weight_type. Raises InputError for quantizers that ONNX can't say.
    """
    form = ExportForm(fx.GraphModule(model, copy_of(model.graph)))
    replace_averages(form.graph)
    dynamic_form(form, lambda name, layer: export_weight(form, name, layer, asked, exact))
    replace_quantizers(form)
    enter_grids_early(form.graph)
    repeat_grids(form.graph)
    export_layers(form, asked, exact)
    name_operations(form)
    form.graph.graph.eliminate_dead_code()
    for node in form.graph.graph.nodes:
        node.meta = {}  # torch.export would tell operations by the module paths of the first trace
    form.graph.recompile()
    return form

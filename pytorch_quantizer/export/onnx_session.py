"""ONNX Runtime's sessions: on the CPU, with as many threads as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.export.onnx_packages import package

PROVIDERS = ["CPUExecutionProvider"]
ERRORS_ONLY = 3


def session(model: Path | bytes, threads: int, optimized: Path | None = None) -> Any:
    """An onnxruntime.InferenceSession on the CPU. optimized: where to write the graph that it makes of the model.

    Raises InputError for what ONNX Runtime doesn't load.
    """
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return runtime.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=PROVIDERS)
    except Exception as error:  # as above
        named = "the model" if isinstance(model, bytes) else model
        raise InputError(f"ONNX Runtime can't load {named}: {first_line(error)}") from error

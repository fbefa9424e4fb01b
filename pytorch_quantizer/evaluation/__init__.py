"""What a model is worth: what it gets right, how long it takes, how large it is.
How it was quantized lives in quantization/ and graph/.
"""

from pytorch_quantizer.evaluation.answers import count_answers
from pytorch_quantizer.evaluation.latency import Latency, compare_latency, latency_by_batch, measure_latency
from pytorch_quantizer.evaluation.layers import layer_table, measure_layers, sqnr_db
from pytorch_quantizer.evaluation.metrics import Evaluation, evaluate, wilson_interval
from pytorch_quantizer.evaluation.size import file_bytes, file_label, size_bytes

__all__ = [
    "Evaluation",
    "Latency",
    "compare_latency",
    "count_answers",
    "evaluate",
    "file_bytes",
    "file_label",
    "latency_by_batch",
    "layer_table",
    "measure_latency",
    "measure_layers",
    "size_bytes",
    "sqnr_db",
    "wilson_interval",
]

"""What a model is worth: what it gets right, how long it takes, how large it is.
How it was quantized lives in quantization/ and graph/.
"""

from pytorch_quantizer.evaluation.latency import Latency, measure_latency
from pytorch_quantizer.evaluation.metrics import Evaluation, evaluate, wilson_interval

__all__ = ["Evaluation", "Latency", "evaluate", "measure_latency", "wilson_interval"]

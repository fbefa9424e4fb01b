"""What two models answered, class by class: the counts that confusion matrices are drawn from.
Rates are metrics.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pytorch_quantizer.evaluation.metrics import Evaluation


def count_answers(evaluation: Evaluation, class_names: Sequence[str]) -> dict[str, Any]:
    """How many images of each class the reference and the model took for which: a row a combination that occurs.

    classes: the names. label, fp32 (the reference's prediction), quantized (the model's), count: lists of whole
    numbers, as long as there are combinations, in ascending order. An evaluation without a reference has fp32 None.
    """
    columns = [evaluation.labels, evaluation.predictions]
    if evaluation.reference is not None:
        columns.insert(1, evaluation.reference.predictions)
    rows, counts = torch.stack(columns, dim=1).unique(dim=0, return_counts=True)
    label, *answers = rows.T.tolist()
    fp32 = answers[0] if evaluation.reference is not None else None
    names = [str(name) for name in class_names]
    return {"classes": names, "label": label, "fp32": fp32, "quantized": answers[-1], "count": counts.tolist()}

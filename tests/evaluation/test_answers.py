"""Answers by class: the counts add up to the evaluation's own rates."""

import torch
from torch import nn

from pytorch_quantizer.evaluation import count_answers, evaluate


class Says(nn.Module):
    """Answers what it was given, image by image."""

    def __init__(self, answers):
        super().__init__()
        self.answers = torch.tensor(answers)

    def forward(self, x):
        return nn.functional.one_hot(self.answers[x[:, 0].long()], 3).float()


LABELS = [0, 0, 1, 1, 2, 2]
LOADER = [(torch.arange(6.0)[:, None], torch.tensor(LABELS))]


def test_a_row_a_combination_that_occurs():
    found = evaluate(Says([0, 1, 1, 1, 2, 0]), LOADER, reference=Says([0, 0, 1, 1, 2, 1]), progress=False)
    counted = count_answers(found, ["a", "b", "c"])
    rows = list(zip(*(counted[key] for key in ("label", "fp32", "quantized", "count")), strict=True))
    assert rows == [(0, 0, 0, 1), (0, 0, 1, 1), (1, 1, 1, 2), (2, 1, 0, 1), (2, 2, 2, 1)]
    assert counted["classes"] == ["a", "b", "c"]
    right = sum(count for label, _, quantized, count in rows if label == quantized)
    assert right / 6 == found.top1


def test_without_a_reference_there_is_no_float():
    counted = count_answers(evaluate(Says(LABELS), LOADER, progress=False), ["a", "b", "c"])
    assert counted["fp32"] is None
    assert (counted["label"], counted["quantized"], counted["count"]) == ([0, 1, 2], [0, 1, 2], [2, 2, 2])

"""What a model gets right: accuracies, precision, recall and F1, and its agreement with a reference model.
How fast and how large it is lives in latency.py and size.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pytorch_quantizer.calibration.calibrate import device_of
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.ranks import ALONE, Ranks

AVERAGES = ("macro", "micro", "weighted")
TOP = 5


@dataclass(frozen=True)
class Evaluation:
    """All rates are fractions of 1.

    `top5` counts the label among the min(5, classes) highest logits; equal logits rank by class number.
    `top1_interval` is Wilson's 95 % confidence interval. `precision`, `recall` and `f1` are by average (AVERAGES), over
    the classes that occur among labels or predictions; 0 where a class has no prediction or no image.
    `agreement` is the fraction of images on which the model and the reference predict the same class.
    """

    samples: int
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    precision: dict[str, float]
    recall: dict[str, float]
    f1: dict[str, float]
    agreement: float | None
    predictions: Tensor = field(repr=False, compare=False)  # int64 [samples]
    labels: Tensor = field(repr=False, compare=False)  # int64 [samples]
    reference: "Evaluation | None" = None

    def __str__(self) -> str:
        low, high = self.top1_interval
        agreement = ""
        if self.reference is not None:
            agreement = f", reference's top-1 {self.reference.top1:.2%}, agreement {self.agreement:.2%}"
        return (
            f"top-1 {self.top1:.2%} (95 %: {low:.2%} to {high:.2%}), top-5 {self.top5:.2%}, "
            f"macro F1 {self.f1['macro']:.4f}{agreement}, {self.samples} images"
        )

    def as_dict(self) -> dict[str, Any]:
        """Give the numbers without the per-image tensors, for JSON."""
        hidden = ("predictions", "labels", "reference")
        numbers = {name: value for name, value in vars(self).items() if name not in hidden}
        return numbers | {"top1_interval": list(self.top1_interval)}


@dataclass(frozen=True)
class _Answers:
    """What one model said of one batch, or of all: class, whether the label was in the top five, finite logits."""

    predictions: Tensor
    in_top: Tensor
    finite: Tensor


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    reference: nn.Module | None = None,
    device: torch.device | str | None = None,
    ranks: Ranks = ALONE,
    progress: bool = True,
) -> Evaluation:
    """Run `model` over batches (images, labels) and compare with the labels, and with `reference` in the same pass.

    `reference`'s own numbers are in the result's `.reference`. `device` None: where the model is; both models are
    moved there. Models run in eval mode and are left in the mode they came in. `ranks`: of several processes, whose
    loaders give each its share of the batches (`make_loader`); all get the result of them all.
    Raises InputError for a loader without images or without labels, outputs that aren't logits [N, classes], labels
    that the model has no output for, and logits that are NaN or infinite, which no accuracy could be trusted with.
    """
    device = torch.device(device) if device is not None else device_of(model)
    models = [model] if reference is None else [model, reference]
    modes = [module.training for module in models]
    for module in models:
        module.to(device).eval()
    try:
        labels, answers = _run(models, loader, device, ranks, progress)
    finally:
        for module, mode in zip(models, modes, strict=True):
            module.train(mode)
    other = None if reference is None else _evaluation(answers[1], labels, "the reference model")
    return _evaluation(answers[0], labels, "the model", other)


def wilson_interval(correct: int, samples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate of `correct` in `samples`, as fractions of 1."""
    from scipy.stats import binomtest

    interval = binomtest(correct, samples).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def _run(
    models: list[nn.Module], loader: Iterable[Any], device: torch.device, ranks: Ranks, progress: bool
) -> tuple[Tensor, list[_Answers]]:
    """(labels, each model's answers), in the order that one process has."""
    done: list[tuple[Tensor, list[_Answers]]] = []  # a batch each
    # delay: a pass of less than a second needs no bar.
    for batch in tqdm(loader, desc="evaluate", unit="batch", disable=not progress, delay=1, leave=False):
        images, labels = _labelled(batch)
        images, labels = images.to(device), labels.to(device)
        done.append((labels.cpu(), [_answer(module, images, labels) for module in models] if len(images) else []))
    done = [(labels, answers) for labels, answers in ranks.in_order(done) if len(labels)]
    if not done:
        raise InputError("nothing to evaluate: the loader gave no images")
    by_model = zip(*(answers for _, answers in done), strict=True)
    return torch.cat([labels for labels, _ in done]), [_joined(batches) for batches in by_model]


def _labelled(batch: Any) -> tuple[Tensor, Tensor]:
    """The batch, if it is images [N, …] and labels [N]."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        images, labels = batch
        if labels.shape == images.shape[:1]:
            return images, labels
    parts = batch if isinstance(batch, tuple | list) else [batch]
    got = ", ".join(str(list(part.shape)) if isinstance(part, Tensor) else type(part).__name__ for part in parts)
    raise InputError(f"evaluate needs batches (images [N, …], labels [N]), got {type(batch).__name__} of {got}")


@torch.inference_mode()
def _answer(model: nn.Module, images: Tensor, labels: Tensor) -> _Answers:
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"evaluate needs a model that gives logits [{len(labels)}, classes], got {got}")
    classes = logits.shape[1]
    if int(labels.max()) >= classes:
        raise InputError(f"the model has {classes} outputs, but there is an image of class {int(labels.max())}")
    # A stable sort, so that equal logits rank the same on every device.
    ranking = logits.float().sort(dim=1, descending=True, stable=True).indices
    in_top = (ranking[:, :TOP] == labels[:, None]).any(dim=1)
    return _Answers(ranking[:, 0].cpu(), in_top.cpu(), logits.isfinite().all(dim=1).cpu())


def _joined(batches: Sequence[_Answers]) -> _Answers:
    return _Answers(
        torch.cat([batch.predictions for batch in batches]),
        torch.cat([batch.in_top for batch in batches]),
        torch.cat([batch.finite for batch in batches]),
    )


def _evaluation(answers: _Answers, labels: Tensor, who: str, reference: Evaluation | None = None) -> Evaluation:
    samples = len(labels)
    broken = samples - int(answers.finite.sum())
    if broken:
        raise InputError(
            f"{who} gives NaN or infinite logits for {broken} of {samples} images: check its weights and ranges"
        )
    correct = int((answers.predictions == labels).sum())
    scores = {average: _scores(labels, answers.predictions, average) for average in AVERAGES}
    return Evaluation(
        samples=samples,
        top1=correct / samples,
        top5=int(answers.in_top.sum()) / samples,
        top1_interval=wilson_interval(correct, samples),
        precision={average: score[0] for average, score in scores.items()},
        recall={average: score[1] for average, score in scores.items()},
        f1={average: score[2] for average, score in scores.items()},
        agreement=None if reference is None else _agreement(answers.predictions, reference.predictions),
        predictions=answers.predictions,
        labels=labels,
        reference=reference,
    )


def _scores(labels: Tensor, predictions: Tensor, average: str) -> tuple[float, float, float]:
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        labels.numpy(), predictions.numpy(), average=average, zero_division=0
    )
    return float(precision), float(recall), float(f1)


def _agreement(predictions: Tensor, others: Tensor) -> float:
    return float((predictions == others).double().mean())

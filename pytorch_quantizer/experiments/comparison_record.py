"""What a comparison found, tensor by tensor and of the predictions, and how it stands in compare.json.
How it comes about is comparing.py's business; what people read of it, comparison_report.py's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pytorch_quantizer.export.agreement import TensorAgreement
from pytorch_quantizer.export.onnx_runtime import OperatorReport

FILE = "compare.json"
SIMULATED, INTEGER, ONNXRUNTIME = "simulated", "integer", "onnxruntime"
ALONE = "alone"  # the integer reference, each tensor from the simulation's codes of what it is computed from


@dataclass(frozen=True)
class Difference:
    """Where one model's codes leave another's first, in the order of execution, each model running by itself.

    model, beside: simulated, integer or onnxruntime. position: of the tensor among all, from 1.
    """

    model: str
    beside: str
    tensor: str
    position: int
    places: int
    differing: int
    most: int
    from_tie: float
    why: str

    @property
    def share(self) -> float:
        """The fraction of places that differ."""
        return self.differing / self.places


@dataclass(frozen=True)
class TensorComparison:
    """One tensor on a grid, its codes against the simulation's.

    alone: in integers, from the simulation's codes of what it is computed from. integer, onnxruntime: where these
    models run by themselves, so that what was different before counts too; None where there is no such model, or the
    tensor is none that it stores. why: what makes ``alone`` differ.
    """

    name: str
    type: str
    alone: TensorAgreement
    integer: TensorAgreement
    onnxruntime: TensorAgreement | None
    why: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        row: dict[str, Any] = {"name": self.name, "type": self.type, "bits": self.alone.bits}
        row["places"] = self.alone.places
        for model in (ALONE, INTEGER, ONNXRUNTIME):
            found = getattr(self, model)
            row[model] = None if found is None else counts(found) | {"share": found.share}
        return row | {"why": self.why}


@dataclass(frozen=True)
class Exported:
    """An exported model. label: integer or simulated; weight_type: how 8-bit weights are stored, and why."""

    label: str
    weight_type: str
    operators: OperatorReport

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "operators": self.operators.table.to_dict("records")}


@dataclass(frozen=True)
class Comparison:
    """What was seen on ``images`` images; entries by model: integer and onnxruntime, top1 also simulated.

    predictions_agree: fraction of images for which a model predicts the simulation's class. top1: fraction right, None
    without labels. logits_apart: the largest difference from a simulated logit; logits_why: what makes those differ
    that are computed in integers from the simulation's codes. tensors: in the order of execution. differences: where a
    model leaves another first, one for each two that differ. floats: what the integer reference computes in float.
    exported: what ONNX Runtime ran, and what of it in integers. left_out: why a model that did not run did not; its
    other entries are None.
    """

    images: int
    predictions_agree: dict[str, float | None]
    top1: dict[str, float | None]
    logits_apart: dict[str, float | None]
    logits_why: str
    tensors: tuple[TensorComparison, ...]
    differences: tuple[Difference, ...]
    floats: tuple[str, ...]
    exported: Exported | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def first_difference(self) -> Difference | None:
        """The first tensor at which any model leaves the simulation; None where all codes are the simulation's."""
        from_simulation = [found for found in self.differences if found.beside == SIMULATED]
        return min(from_simulation, key=lambda found: found.position, default=None)

    def __str__(self) -> str:
        agree = [f"{model} {rate:.2%}" for model, rate in self.predictions_agree.items() if rate is not None]
        first = self.first_difference
        where = "none" if first is None else f"{first.tensor} ({first.model}), {first.differing:,} codes, {first.why}"
        return f"predictions agree on {self.images} images: {', '.join(agree)}; first tensor that differs: {where}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        first, plain = self.first_difference, ("images", "predictions_agree", "top1", "logits_apart", "logits_why")
        return {
            **{name: getattr(self, name) for name in plain},
            "first_difference": None if first is None else asdict(first),
            "differences": [asdict(found) for found in self.differences],
            "computed_in_float": list(self.floats),
            "exported": None if self.exported is None else self.exported.as_dict(),
            "left_out": self.left_out,
            "tensors": [tensor.as_dict() for tensor in self.tensors],
        }


def counts(found: TensorAgreement) -> dict[str, Any]:
    """How many codes differ, by how much and how far from a tie, for JSON."""
    return {"differing": found.differing, "most": found.most, "from_tie": found.from_tie}

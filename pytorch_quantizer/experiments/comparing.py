"""A simulation, the integer reference and ONNX Runtime run on a few images at a time: the codes and logits that differ.
What of it is kept is comparison_record.py's; comparison.py gives it models and images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pytorch_quantizer.calibration.calibrate import device_of
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.comparison_record import (
    ALONE,
    INTEGER,
    ONNXRUNTIME,
    SIMULATED,
    Comparison,
    Difference,
    Exported,
    TensorComparison,
    counts,
)
from pytorch_quantizer.export.agreement import SAME, TIES, TensorAgreement, simulated_codes
from pytorch_quantizer.export.faults import faults, saturating
from pytorch_quantizer.export.integer import IntegerModel, Step, Trace
from pytorch_quantizer.export.onnx import export_onnx
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel, operator_report
from pytorch_quantizer.export.onnx_types import adds_exactly
from pytorch_quantizer.export.trial import first_run
from pytorch_quantizer.graph.quantized_model import QuantizedModel

PAIRS = (
    *((ALONE, SIMULATED), (INTEGER, SIMULATED)),
    *((ONNXRUNTIME, SIMULATED), (ONNXRUNTIME, INTEGER), (ONNXRUNTIME, ALONE)),
)
MEMORY = 2**30  # bytes that what is known of the images compared at once may take
PLACE = 48  # bytes an element takes: two traces, and what is computed on the way
PROBED = 2  # images that a fault is sought with
LOGITS = 1e-5  # of the largest logit: float32's noise in sums of a few thousand terms is less


class Comparing:
    """What has been seen so far of a simulated model and of those beside it, codes and logits.

    model, onnxruntime: compare's. path: where an export for the occasion goes. tallies: by two models, then by tensor.
    """

    def __init__(self, model: QuantizedModel, onnxruntime: OnnxRuntimeModel | bool | None, path: Path) -> None:
        self.model, self.integer, self.device = model, IntegerModel(model), device_of(model)
        self.asked, self.path = onnxruntime, path
        self.runtime = onnxruntime if isinstance(onnxruntime, OnnxRuntimeModel) else None
        self.left_out: dict[str, str] = {}
        self.tallies: dict[tuple[str, str], dict[str, TensorAgreement]] = {}
        self.logits: dict[str, list[Tensor]] = {}
        self.labels: list[Tensor | None] = []
        self.floats: dict[str, None] = {}
        self.at_once, self.probe = 0, torch.empty(0)

    def pieces(self, images: Tensor, labels: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """A batch in parts of which what is known fits in MEMORY."""
        images = images.to(self.device)
        if not self.at_once and len(images):
            self._begin(images[:PROBED])
        for start in range(0, len(images), self.at_once or 1):
            part = slice(start, start + self.at_once)
            yield images[part], None if labels is None else labels[part]

    def _begin(self, probe: Tensor) -> None:
        _, trace = first_run(self.integer.trace, probe[:1], "images")
        self.at_once, self.probe = _images_at_once(trace), probe
        if self.runtime is not None:
            return
        if self.asked is False:
            self.left_out[ONNXRUNTIME] = "it was not asked for"
            return
        try:
            export_onnx(self.model, self.path, probe)
            self.runtime = OnnxRuntimeModel(self.path)
        except InputError as error:
            if self.asked:
                raise
            self.left_out[ONNXRUNTIME] = str(error)

    def see(self, images: Tensor, labels: Tensor | None) -> None:
        """Run every model on a few images."""
        outputs: dict[str, Any] = {}
        codes: dict[str, Mapping[str, Tensor]] = {}
        outputs[SIMULATED], codes[SIMULATED] = simulated_codes(self.model, images)
        outputs[ALONE], alone = self.integer.trace(images, given=codes[SIMULATED])
        outputs[INTEGER], own = self.integer.trace(images)
        codes[ALONE], codes[INTEGER] = _codes(alone), _codes(own)
        if self.runtime is not None:
            outputs[ONNXRUNTIME] = self.runtime(images)
            codes[ONNXRUNTIME] = {name: found.to(self.device) for name, found in self.runtime.codes(images).items()}
        for model, beside in PAIRS:
            if model in codes:
                self._tally(model, beside, codes, own.steps if beside == INTEGER else alone.steps)
        for model, logits in outputs.items():
            self.logits.setdefault(model, []).append(_checked_logits(model, logits, len(images)))
        self.floats |= dict.fromkeys(alone.floats)
        self.labels.append(labels)

    def _tally(self, model: str, beside: str, codes: dict[str, Mapping[str, Tensor]], steps: list[Step]) -> None:
        """Count two models' codes. steps: what they were before rounding, computed in integers from the second's."""
        found = self.tallies.setdefault((model, beside), {})
        for step in steps:
            if step.name in codes[model]:
                known = found.get(step.name, TensorAgreement(step.name, step.result.grid.bits))
                found[step.name] = known.seeing(codes[model][step.name], codes[beside][step.name], step.before)

    def result(self) -> Comparison:
        """All of it. Raises InputError where there were no images."""
        if not self.labels:
            raise InputError("nothing to compare: there were no images")
        logits = {name: torch.cat(parts) for name, parts in self.logits.items()}
        alone, simulated = logits.pop(ALONE), logits[SIMULATED]
        predictions = {name: _predictions(values) for name, values in logits.items()}
        labels = _joined(self.labels, simulated.shape[1])
        others = [INTEGER, ONNXRUNTIME]
        return Comparison(
            images=len(simulated),
            predictions_agree={name: _fraction(predictions.get(name), predictions[SIMULATED]) for name in others},
            top1={name: _fraction(predictions.get(name), labels) for name in (SIMULATED, *others)},
            logits_apart={name: _apart(logits.get(name), simulated) for name in others},
            logits_why=self._logits_why(alone, simulated),
            tensors=tuple(self._tensors()),
            differences=tuple(self._differences()),
            floats=tuple(self.floats),
            exported=None if self.runtime is None else _exported(self.runtime),
            left_out=self.left_out,
        )

    def _tensors(self) -> Iterator[TensorComparison]:
        types = {site.name: site.quantizer.describe() for site in self.model.sites if site.quantizer is not None}
        integer, runtime = (self.tallies.get((model, SIMULATED), {}) for model in (INTEGER, ONNXRUNTIME))
        for name, alone in self.tallies[ALONE, SIMULATED].items():
            yield TensorComparison(name, types[name], alone, integer[name], runtime.get(name), self._why(alone))

    def _differences(self) -> Iterator[Difference]:
        """Where two models leave each other. The tensors before are the same, so that it is the tensor's own doing."""
        order = list(self.tallies[ALONE, SIMULATED])
        for (model, beside), tensors in self.tallies.items():
            found = next((found for found in tensors.values() if found.differing), None)
            if found is not None and ALONE not in (model, beside):
                position, why = order.index(found.name) + 1, self._why(found, model, beside)
                yield Difference(model, beside, found.name, position, found.places, **counts(found), why=why)

    def _why(self, agreement: TensorAgreement, model: str = ALONE, beside: str = SIMULATED) -> str:
        """What makes the codes differ of a tensor that both models compute from the same."""
        same_as_integers = model == ONNXRUNTIME and not self.tallies[ONNXRUNTIME, ALONE][agreement.name].differing
        found = [agreement.why]
        if agreement.why not in (SAME, TIES):
            found = [*faults(self.model, agreement.name, self.probe), *found]
            if model == ONNXRUNTIME and not same_as_integers:
                found = [*self._saturating(agreement.name), *found]
        if beside == SIMULATED and same_as_integers:
            found.append("the integer reference has the same codes there")
        return "; ".join(found)

    def _saturating(self, name: str) -> list[str]:
        types = None if self.runtime is None else self.runtime.content["weights"]
        return [] if types is None or adds_exactly() else saturating(self.model, name, types)

    def _logits_why(self, alone: Tensor, simulated: Tensor) -> str:
        apart, largest = float((alone - simulated).abs().max()), float(simulated.abs().max())
        if apart == 0:
            return SAME
        if apart <= LOGITS * largest:
            return "float32's rounding"
        return "; ".join([*faults(self.model, None, self.probe), f"up to {apart:.3g} apart"])


def _exported(runtime: OnnxRuntimeModel) -> Exported:
    return Exported(runtime.label, str(runtime.content["weight_type"]), operator_report(runtime.path))


def _codes(trace: Trace) -> dict[str, Tensor]:
    return {step.name: step.result.codes for step in trace.steps}


def _images_at_once(trace: Trace) -> int:
    """How many fit in MEMORY. trace: of one image."""
    return max(1, MEMORY // (PLACE * sum(step.before.numel() for step in trace.steps) + 1))


def _checked_logits(model: str, logits: Any, images: int) -> Tensor:
    """float32 [N, classes], on the CPU."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != images:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"compare needs a model that gives logits [{images}, classes], got {got}")
    if not bool(logits.isfinite().all()):
        raise InputError(f"logits ({model}) are NaN or infinite: check the model's weights and ranges")
    return logits.float().cpu()


def _joined(parts: list[Tensor | None], classes: int) -> Tensor | None:
    """Labels [images], None where some images came without. Raises InputError for one that is none of the classes."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    labels = torch.cat(known).cpu()
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label < classes:
            raise InputError(f"the model has {classes} outputs, but there is an image of class {label}")
    return labels


def _predictions(logits: Tensor) -> Tensor:
    """[N]: the class of the highest logit, of equal ones the first."""
    return logits.sort(dim=1, descending=True, stable=True).indices[:, 0]


def _fraction(predictions: Tensor | None, others: Tensor | None) -> float | None:
    return None if predictions is None or others is None else float((predictions == others).double().mean())


def _apart(logits: Tensor | None, others: Tensor) -> float | None:
    return None if logits is None else float((logits - others).abs().max())

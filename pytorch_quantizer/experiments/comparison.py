"""The simulation beside what runs in integers, on the same images: which codes and predictions differ, where and why.
The exact reference is export/integer.py's, the exported model export/onnx.py's; scripts/compare.py is the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.calibration.calibrate import device_of
from pytorch_quantizer.data import calibration_loader, make_loader
from pytorch_quantizer.environment import choose_device, provenance
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.inference import LATENCY_IMAGES, InferenceConfig, load_images, load_model, resolved
from pytorch_quantizer.export.agreement import SAME, TIES, TensorAgreement, simulated_codes
from pytorch_quantizer.export.faults import faults, saturating
from pytorch_quantizer.export.integer import IntegerModel, Step, Trace
from pytorch_quantizer.export.onnx import export_onnx
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel, OperatorReport, operator_report
from pytorch_quantizer.export.onnx_types import adds_exactly
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.quantize import quantize

FILE = "compare.json"
SIMULATED, INTEGER, ONNXRUNTIME = "simulated", "integer", "onnxruntime"
ALONE = "alone"  # the integer reference, each tensor from the simulation's codes of what it is computed from
PAIRS = (
    *((ALONE, SIMULATED), (INTEGER, SIMULATED)),
    *((ONNXRUNTIME, SIMULATED), (ONNXRUNTIME, INTEGER), (ONNXRUNTIME, ALONE)),
)
MEMORY = 2**30  # bytes that what is known of the images compared at once may take
PLACE = 48  # bytes an element takes: two traces, and what is computed on the way
PROBED = 2  # images that a fault is sought with
LOGITS = 1e-5  # of the largest logit: float32's noise in sums of a few thousand terms is less


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
            row[model] = None if found is None else _counts(found) | {"share": found.share}
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


@dataclass(frozen=True)
class ComparisonResult:
    """What came out. record: what it was seen on, for compare.json. model: the simulated model.

    images: [N, C, H, W], an example of those that ranges come from.
    """

    comparison: Comparison
    record: dict[str, Any]
    model: QuantizedModel
    images: Tensor


def compare(
    model: QuantizedModel,
    batches: Iterable[Any],
    *,
    onnxruntime: OnnxRuntimeModel | bool | None = None,
    progress: bool = True,
) -> Comparison:
    """Run a simulated model, and what runs in integers, on the same images.

    batches: images [N, …], or (images, labels), of which top-1 is told. However large the batches, so few images at
    once are compared that what is known of them fits in MEMORY. onnxruntime: the exported model to compare; None: the
    model is exported for the occasion where it can be, else ``left_out`` says why it wasn't; True: it must be; False:
    it isn't. The model runs in eval mode and is left in the mode it came in.
    Raises InputError where there are no images, where outputs are no logits [N, classes] or not finite, as IntegerModel
    does for what integer kernels can't run, and as export_onnx does where the export is asked for.
    """
    bar = tqdm(desc="compare", unit="image", total=_count(batches), delay=1, disable=not progress, leave=False)
    with bar, TemporaryDirectory() as folder:
        comparing = _Comparing(model, onnxruntime, Path(folder) / "model.onnx")
        training = model.training
        try:
            model.eval()
            for batch in batches:
                for images, labels in comparing.pieces(*_images_and_labels(batch)):
                    comparing.see(images, labels)
                    bar.update(len(images))
            return comparing.result()
        finally:
            model.train(training)


def run_comparison(config: InferenceConfig, recipe: Recipe) -> ComparisonResult:
    """Quantize as run_inference does, and compare.

    Raises InputError for whatever in ``config`` or ``recipe`` can't be carried out, or not in integers. Nothing is
    written; but an output folder that can't be written to is noticed before the work, not after it.
    """
    config = resolved(config)
    device = choose_device(config.device)
    test, calibration, source = load_images(config)
    model = load_model(config, test).to(device)
    if config.output is not None:
        require_writable(config.output / FILE)
    drawn = calibration_loader(calibration, config.calibration_samples, batch_size=config.batch_size, seed=config.seed)
    quantized = quantize(model, recipe, drawn, statistics_file=config.statistics_file, strict=config.strict)
    comparison = compare(quantized, make_loader(test, config.batch_size, limit=config.limit))
    record = {
        "dataset": config.dataset,
        "arch": config.arch,
        "seed": config.seed,
        "recipe": asdict(recipe),
        "calibration": {
            "samples": quantized.calibration_images,
            "split": None if quantized.statistics_read else source,
            "statistics_file": str(config.statistics_file) if quantized.statistics_read else None,
        },
        "skipped_images": list(dict.fromkeys([*test.skipped, *calibration.skipped])),
        **provenance(device, "onnx", "onnxruntime"),
    }
    return ComparisonResult(comparison, record, quantized, next(iter(drawn))[0][:LATENCY_IMAGES])


class _Comparing:
    """What has been seen so far. tallies: by two models, then by tensor."""

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
        self.at_once, self.probe = _images_at_once(self.integer, probe[:1]), probe
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
                yield Difference(model, beside, found.name, position, found.places, **_counts(found), why=why)

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


def _images_at_once(integer: IntegerModel, image: Tensor) -> int:
    _, trace = integer.trace(image)
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
    """Labels [images], None where some images came without. Raises InputError for one beyond the model's classes."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    labels = torch.cat(known).cpu()
    if int(labels.max()) >= classes:
        raise InputError(f"the model has {classes} outputs, but there is an image of class {int(labels.max())}")
    return labels


def _images_and_labels(batch: Any) -> tuple[Tensor, Tensor | None]:
    images, *rest = batch if isinstance(batch, tuple | list) and batch else [batch]
    if not isinstance(images, Tensor) or not images.is_floating_point() or len(rest) > 1:
        raise InputError(
            f"compare needs batches of float images [N, …] or (images, labels), got {type(batch).__name__}"
        )
    labels = rest[0] if rest else None
    if labels is not None and (not isinstance(labels, Tensor) or labels.shape != images.shape[:1]):
        got = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"labels must be one an image, [{len(images)}], got {got}")
    return images, labels


def _count(batches: Iterable[Any]) -> int | None:
    """How many images there are, where a loader tells."""
    sampler = getattr(batches, "sampler", None)
    return len(sampler) if isinstance(sampler, Sized) else None


def _counts(found: TensorAgreement) -> dict[str, Any]:
    return {"differing": found.differing, "most": found.most, "from_tie": found.from_tie}


def _predictions(logits: Tensor) -> Tensor:
    """[N]: the class of the highest logit, of equal ones the first."""
    return logits.sort(dim=1, descending=True, stable=True).indices[:, 0]


def _fraction(predictions: Tensor | None, others: Tensor | None) -> float | None:
    return None if predictions is None or others is None else float((predictions == others).double().mean())


def _apart(logits: Tensor | None, others: Tensor) -> float | None:
    return None if logits is None else float((logits - others).abs().max())

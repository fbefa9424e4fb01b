"""The main job, end to end: load a network and images, quantize, evaluate beside float32, and report.
scripts/run_inference.py is its command line; each step lives in its own stage's folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from torch import Tensor, nn

from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.calibration.calibrate import device_of
from pytorch_quantizer.data import (
    ImageDataset,
    ImageLoader,
    calibration_loader,
    make_loader,
)
from pytorch_quantizer.environment import choose_device, machine, versions
from pytorch_quantizer.evaluation import (
    Evaluation,
    Latency,
    count_answers,
    evaluate,
    file_bytes,
    file_label,
    latency_by_batch,
    measure_layers,
)
from pytorch_quantizer.experiments.chosen_types import budgets_of, chosen_types
from pytorch_quantizer.experiments.inference_config import (
    InferenceConfig,
    ResolvedConfig,
    load_images,
    load_model,
    resolved,
)
from pytorch_quantizer.experiments.quantize_job import quantize_job
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.ranks import ALONE, Ranks, device_of_rank

LATENCY_IMAGES = 32  # of the larger batch that is timed; the other is one image
LAYER_IMAGES = 16  # every tensor of them is held in memory at once, of two models
DEFAULT_RESOURCES = Resources()


@dataclass(frozen=True)
class InferenceResult:
    """What came out. record: result.json's content. layers: layers.csv's. model: the simulated model.

    images: [N, C, H, W], the larger of the batches that were timed. details: details.json's, what pictures are drawn
    from: tensors (distributions.py), batches (min and max of activations in each calibration batch, by name) and
    answers (answers.py).
    """

    record: dict[str, Any]
    layers: pd.DataFrame
    model: QuantizedModel
    images: Tensor
    details: dict[str, Any]


@dataclass(frozen=True)
class Inference:
    """A network quantized and evaluated, before anything of it is timed or drawn.

    test, calibration: the images; split: where the latter come from. drawn: the batches that ranges come from.
    seconds: that quantizing took. asked: the recipe as it was given, None where that isn't known.
    """

    config: ResolvedConfig
    test: ImageDataset
    calibration: ImageDataset
    split: str
    drawn: ImageLoader
    model: nn.Module
    quantized: QuantizedModel
    evaluation: Evaluation
    seconds: float
    asked: Recipe | None = None


def run_inference(config: InferenceConfig, recipe: Recipe, resources: Resources = DEFAULT_RESOURCES) -> InferenceResult:
    """Quantize and evaluate. Raises InputError for whatever in ``config`` or ``recipe`` can't be carried out.

    resources: of learning, where the recipe asks for it. Nothing else is written; but an output folder that can't be
    written to is noticed before the work, not after it.
    """
    return result_of(infer(config, recipe, resources))


def infer(
    config: InferenceConfig, recipe: Recipe, resources: Resources = DEFAULT_RESOURCES, ranks: Ranks = ALONE
) -> Inference:
    """``run_inference`` as far as several processes can share it; each ends with the same numbers.

    What is learned is learned by the first alone. Raises InputError as ``run_inference`` does.
    """
    config = resolved(config)
    device = choose_device(device_of_rank(config.device))
    test, calibration, split = load_images(config)
    model = load_model(config, test).to(device)
    if config.output is not None:
        require_writable(config.output / "result.json")
    drawn = calibration_loader(calibration, config.calibration_samples, batch_size=config.batch_size, seed=config.seed)
    evaluated = make_loader(test, config.batch_size, limit=config.limit, ranks=ranks)
    start = time.perf_counter()
    quantized = quantize_job(model, recipe, drawn, config, resources, ranks)
    seconds = time.perf_counter() - start
    evaluation = evaluate(quantized, evaluated, reference=model, device=device, ranks=ranks, progress=ranks.is_first)
    for images in (test, calibration):
        images.skipped[:] = dict.fromkeys(path for skipped in ranks.everyones(images.skipped) for path in skipped)
    return Inference(config, test, calibration, split, drawn, model, quantized, evaluation, seconds, recipe)


def result_of(done: Inference) -> InferenceResult:
    """What is timed and measured tensor by tensor, beside what was evaluated."""
    config, quantized, device = done.config, done.quantized, device_of(done.model)
    images = next(iter(done.drawn))[0].to(device)
    measured = images[:LAYER_IMAGES]
    record = {
        **config.subject,
        "samples": done.evaluation.samples,
        "deployable": quantized.recipe.deployable,
        "quantizing_seconds": done.seconds,
        "recipe": asdict(quantized.recipe),
        "types": chosen_types(quantized, done.asked),
        "budgets": budgets_of(done.asked or quantized.recipe),
        "calibration": {
            "samples": quantized.calibration_images,
            "split": None if quantized.statistics_read else done.split,
            "statistics_file": str(config.statistics_file) if quantized.statistics_read else None,
        },
        "skipped_images": list(dict.fromkeys([*done.test.skipped, *done.calibration.skipped])),
        **_both(done.model, quantized, done.evaluation, images),
        "versions": versions(),
        "machine": machine(device),
        "layers": {"samples": len(measured), "split": done.split},
    }
    layers = measure_layers(quantized, done.model, measured)
    details = {
        "tensors": layers.distributions,
        "batches": {name: ends.tolist() for name, ends in quantized.batch_extremes.items()},
        "answers": count_answers(done.evaluation, done.test.class_names),
    }
    return InferenceResult(record, layers.table, quantized, images[:LATENCY_IMAGES], details)


def _both(model: nn.Module, quantized: QuantizedModel, evaluation: Evaluation, images: Tensor) -> dict[str, Any]:
    """The entries fp32 and quantized of the record."""
    assert evaluation.reference is not None
    timed = images[:LATENCY_IMAGES]
    latencies = latency_by_batch({"fp32": model, "quantized": quantized}, timed, sorted({1, len(timed)}))
    return {
        "fp32": _measures(model, evaluation.reference, latencies["fp32"]),
        "quantized": _measures(quantized, evaluation, latencies["quantized"]) | {"agreement": evaluation.agreement},
    }


def _measures(model: nn.Module, evaluation: Evaluation, latencies: Sequence[Latency]) -> dict[str, Any]:
    """Rates as fractions of 1, macro averages under the plain names; latencies by batch size; bytes of the file.

    The largest batch's latency also stands under plain names.
    """
    rates: dict[str, Any] = {"top1": evaluation.top1, "top5": evaluation.top5}
    rates["top1_interval"] = list(evaluation.top1_interval)
    for name in ("precision", "recall", "f1"):
        averages: dict[str, float] = getattr(evaluation, name)
        rates[name] = averages["macro"]
        rates |= {f"{name}_{average}": averages[average] for average in ("micro", "weighted")}
    last = latencies[-1]
    measured = {"latency_ms": last.median_ms, "latency_batch": last.batch_size, "latency_label": last.label}
    measured |= {"latency": [latency.as_dict() for latency in latencies], "execution": last.label}
    return rates | measured | {"size_bytes": file_bytes(model), "size_label": file_label(model)}

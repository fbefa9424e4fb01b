"""The main job, end to end: load a network and images, quantize, evaluate beside float32, and report.
scripts/run_inference.py is its command line; each step lives in its own stage's folder.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor, nn

from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.calibration.calibrate import device_of
from pytorch_quantizer.data import (
    ImageDataset,
    ImageLoader,
    calibration_loader,
    has_split,
    infer_dataset,
    load_dataset,
    load_unlabelled,
    make_loader,
)
from pytorch_quantizer.environment import choose_device, machine, versions
from pytorch_quantizer.errors import InputError
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
from pytorch_quantizer.experiments.quantize_job import quantize_job
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.models import bundled_checkpoint, create_model, default_preprocessing
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.ranks import ALONE, Ranks, device_of_rank

LATENCY_IMAGES = 32  # of the larger batch that is timed; the other is one image
LAYER_IMAGES = 16  # every tensor of them is held in memory at once, of two models
DEFAULT_ARCH = {"imagenet": "resnet50", "folder": "resnet50"}  # elsewhere the CIFAR ResNet-20
DEFAULT_RESOURCES = Resources()
BUNDLED = {("digits", "resnet20"): "digits_resnet20"}


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class InferenceConfig:
    """What to run; each field's ``metadata["help"]`` is its flag's help. The recipe itself is the recipe's business."""

    dataset: str | None = _option(
        None,
        "digits (embedded), mnist, cifar10, imagenet, folder (any ImageFolder); default: what --data holds, or digits",
    )
    data: Path | None = _option(None, "the data set's folder (imagenet: default ~/datasets/ILSVRC2012)")
    arch: str | None = _option(None, "resnet20 … resnet110 (CIFAR), or any torchvision classification model")
    checkpoint: Path | None = _option(None, "weights: .safetensors, .pth, .th; default: bundled, else torchvision's")
    image_size: int | None = _option(None, "pixels that images are brought to, square; default: the network's own")
    calibration_samples: int = _option(1024, "images that ranges are chosen from, drawn from the training split")
    calibration_data: Path | None = _option(
        None, "another folder of images to draw them from, at any depth and without classes"
    )
    batch_size: int = _option(128, "images a batch")
    limit: int | None = _option(None, "evaluate this many images, spread evenly over the data set")
    device: str | None = _option(None, "cpu, cuda or cuda:N; default: the GPU if it works")
    seed: int = _option(0, "of the calibration draw, and of learning")
    strict: bool = _option(False, "stop at a module that can't be captured instead of leaving it in float")
    skip_corrupt: bool = _option(False, "pass over images that can't be decoded, and count them")
    statistics_file: Path | None = _option(
        None, "what calibration saw: read if it is there, else collected and written, for the next run"
    )
    output: Path | None = _option(
        None, "folder for result.json, details.json, layers.csv and .html; default: results/DATASET_ARCH_RECIPE"
    )


@dataclass(frozen=True)
class ResolvedConfig(InferenceConfig):
    """An InferenceConfig in which the data set and the network are named; see resolved()."""

    dataset: str = "digits"
    arch: str = "resnet20"


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
    seconds: that quantizing took.
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
    start = time.perf_counter()
    quantized = quantize_job(model, recipe, drawn, config, resources, ranks)
    seconds = time.perf_counter() - start
    evaluation = evaluate(
        quantized,
        make_loader(test, config.batch_size, limit=config.limit, ranks=ranks),
        reference=model,
        device=device,
        ranks=ranks,
        progress=ranks.is_first,
    )
    for images in (test, calibration):
        images.skipped[:] = dict.fromkeys(path for skipped in ranks.everyones(images.skipped) for path in skipped)
    return Inference(config, test, calibration, split, drawn, model, quantized, evaluation, seconds)


def result_of(done: Inference) -> InferenceResult:
    """What is timed and measured tensor by tensor, beside what was evaluated."""
    config, quantized, device = done.config, done.quantized, device_of(done.model)
    images = next(iter(done.drawn))[0].to(device)
    measured = images[:LAYER_IMAGES]
    record = {
        "dataset": config.dataset,
        "arch": config.arch,
        "samples": done.evaluation.samples,
        "seed": config.seed,
        "deployable": quantized.recipe.deployable,
        "quantizing_seconds": done.seconds,
        "recipe": asdict(quantized.recipe),
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


def resolved(config: InferenceConfig) -> ResolvedConfig:
    """The same with a data set and a network: what ``data`` holds, else digits; and the data set's usual network.

    Raises InputError where ``data`` is not a folder.
    """
    dataset = config.dataset or ("digits" if config.data is None else infer_dataset(config.data))
    given = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    return ResolvedConfig(**given | {"dataset": dataset, "arch": config.arch or DEFAULT_ARCH.get(dataset, "resnet20")})


def load_images(config: ResolvedConfig) -> tuple[ImageDataset, ImageDataset, str]:
    """(test images, calibration images, the split these come from, or the folder).

    Calibration has ``calibration_data`` where it is given, else the training split, where there is one. Raises
    InputError for images that aren't there.
    """
    preprocessing = default_preprocessing(config.arch, config.dataset, config.image_size)

    def load(split: str) -> ImageDataset:
        name, skip = config.dataset, config.skip_corrupt
        return load_dataset(name, config.data, split=split, preprocessing=preprocessing, skip_corrupt=skip)

    test = load("test")
    if config.calibration_data is None:
        source = "train" if has_split(config.dataset, config.data, "train") else "test"
        return test, load(source), source
    size = test[0][0].shape[-1]
    alike = test.preprocessing if test.preprocessing.crop else replace(test.preprocessing, resize=size, crop=size)
    folder = config.calibration_data.expanduser()
    return test, load_unlabelled(folder, alike, skip_corrupt=config.skip_corrupt), str(folder)


def load_model(config: ResolvedConfig, images: ImageDataset) -> nn.Module:
    """The network with trained weights. Raises InputError where there are none: random ones would mean nothing."""
    arch, checkpoint = config.arch, config.checkpoint
    if checkpoint is None and (config.dataset, arch) in BUNDLED:
        checkpoint = bundled_checkpoint(BUNDLED[config.dataset, arch])
    if checkpoint is None and config.dataset != "imagenet":
        raise InputError(
            f"no weights for {arch} on {config.dataset}: give --checkpoint FILE (scripts/train.py makes one)"
        )
    return create_model(
        arch,
        num_classes=images.num_classes,
        in_channels=images.in_channels,
        checkpoint=checkpoint,
        pretrained=checkpoint is None,
    )


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

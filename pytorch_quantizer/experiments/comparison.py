"""compare(): a simulated model beside what runs in integers, on the same images; run_comparison(): quantized for it.
The runs are comparing.py's, what is known of them afterwards comparison_record.py's; scripts/compare.py is the command.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor
from tqdm import tqdm

from pytorch_quantizer.atomic import require_writable
from pytorch_quantizer.data import calibration_loader, make_loader
from pytorch_quantizer.environment import choose_device, provenance
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.comparing import Comparing
from pytorch_quantizer.experiments.comparison_record import FILE, Comparison
from pytorch_quantizer.experiments.inference import DEFAULT_RESOURCES, LATENCY_IMAGES
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, load_model, resolved
from pytorch_quantizer.experiments.quantize_job import quantize_job
from pytorch_quantizer.experiments.resources import Resources
from pytorch_quantizer.export.onnx_runtime import OnnxRuntimeModel
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe


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

    batches: images [N, …], or (images, labels), of which top-1 is told; a tensor by itself is one batch. However large
    the batches, so few images at once are compared that what is known of them fits in MEMORY. onnxruntime: the exported
    model to compare; None: the model is exported for the occasion where it can be, else ``left_out`` says why it
    wasn't; True: it must be; False: it isn't. The model runs in eval mode and is left in the mode it came in.
    Raises InputError where there are no images, or none that the model can run on, where outputs are no logits
    [N, classes] or not finite, as IntegerModel does for what integer kernels can't run, and as export_onnx does where
    the export is asked for.
    """
    bar = tqdm(desc="compare", unit="image", total=_count(batches), delay=1, disable=not progress, leave=False)
    with bar, TemporaryDirectory() as folder:
        comparing = Comparing(model, onnxruntime, Path(folder) / "model.onnx")
        training = model.training
        try:
            model.eval()
            for batch in [batches] if isinstance(batches, Tensor) else batches:
                for images, labels in comparing.pieces(*_images_and_labels(batch)):
                    comparing.see(images, labels)
                    bar.update(len(images))
            return comparing.result()
        finally:
            model.train(training)


def run_comparison(
    config: InferenceConfig, recipe: Recipe, resources: Resources = DEFAULT_RESOURCES
) -> ComparisonResult:
    """Quantize as run_inference does, and compare. resources: of learning, where the recipe asks for it.

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
    compared = make_loader(test, config.batch_size, limit=config.limit)
    quantized = quantize_job(model, recipe, drawn, config, resources)
    comparison = compare(quantized, compared)
    record = {
        **config.subject,
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

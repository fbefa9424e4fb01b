"""A quantized model from its packed checkpoint, measured anew on images beside the float network it was made from.
Quantizing and measuring in one go is inference.py's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pytorch_quantizer.data import calibration_loader, make_loader
from pytorch_quantizer.environment import choose_device
from pytorch_quantizer.evaluation import evaluate
from pytorch_quantizer.experiments.inference import Inference, InferenceResult, result_of
from pytorch_quantizer.experiments.inference_config import InferenceConfig, load_images, load_model, resolved
from pytorch_quantizer.export.checkpoint import load


def measure_saved(path: Path, config: InferenceConfig) -> InferenceResult:
    """What ``run_inference`` gives, of a model that ``pq.save`` wrote: nothing is calibrated or learned.

    config: the images and the float network. Raises InputError as ``pq.load`` does, so also where the model was made
    from another network, and as ``run_inference``.
    """
    config = resolved(config)
    device = choose_device(config.device)
    test, calibration, split = load_images(config)
    model = load_model(config, test).to(device)
    quantized = load(path, model=model, device=device)
    evaluation = evaluate(
        quantized, make_loader(test, config.batch_size, limit=config.limit), reference=model, device=device
    )
    drawn = calibration_loader(calibration, config.calibration_samples, batch_size=config.batch_size, seed=config.seed)
    done = Inference(config, test, calibration, split, drawn, model, quantized, evaluation, seconds=0.0)
    found = result_of(done)
    unknown = {"quantizing_seconds": None, "calibration": {"samples": quantized.calibration_images, "split": None}}
    return replace(found, record=found.record | unknown | {"model": str(path)})

"""Networks that are trained with quantization (calibration/qat.py) before they are measured, and cells of such.
Cells of recipes that need no training are cells.py's.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.experiments.cells import Network
from pytorch_quantizer.export.checkpoint import load
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.training import Augmentation, TrainingConfig, train
from pytorch_quantizer.training import __file__ as training_package

SETTINGS: dict[str, Any] = {"batch_size": 128, "learning_rate": 0.01, "warmup_epochs": 1.0, "ema": 0.98}
AUGMENTED = {"cifar10": Augmentation(shift=4, flip=True), "imagenet": Augmentation(flip=True)}
# Of a config, what doesn't decide what comes out.
PLACES = ("data", "output", "workers", "checkpoint", "recipe", "tensorboard", "mlflow")


def measure_trained(network: Network, recipe: Recipe, epochs: int, folder: Path) -> dict[str, Any]:
    """What Network.measure gives, of the network trained on its training split from the float weights.

    Nothing is chosen by the test images: the last epoch counts, and its average of the weights. folder: where what
    training keeps lies, from which an interrupted training goes on. Raises InputError as train does.
    """
    return network.measure_made(
        trained_key(network, recipe, epochs, folder), lambda: trained_model(network, recipe, epochs, folder)
    )


def trained_key(network: Network, recipe: Recipe, epochs: int, folder: Path) -> dict[str, Any]:
    """What determines a trained network, beside the code that cells.py looks at."""
    config = _config(network, recipe, epochs, folder)
    settings = {name: value for name, value in asdict(config).items() if name not in PLACES}
    return {**network.key_of(recipe), "training": settings, "training_code": _training_code()}


def trained_model(network: Network, recipe: Recipe, epochs: int, folder: Path) -> QuantizedModel:
    """The network trained from its float weights, as it comes out of the packed checkpoint that training wrote.

    The weights are those of ``network``, wherever they came from: a file of them lies in ``folder``.
    """
    config = _config(network, recipe, epochs, folder)
    recipe.save(Path(str(config.recipe)))
    _write_weights(network, Path(str(config.checkpoint)))
    train(config, progress=network.progress)
    return load(Path(str(config.output)), device=network.device)


def _config(network: Network, recipe: Recipe, epochs: int, folder: Path) -> TrainingConfig:
    given = network.config
    name = f"{given.arch}_{given.seed}_{epochs}_{hashlib.sha256(recipe.to_yaml().encode()).hexdigest()[:12]}"
    return TrainingConfig(
        arch=given.arch,
        dataset=given.dataset,
        data=given.data,
        checkpoint=folder / f"{given.arch}_{network.key_of(None)['weights'][:12]}.safetensors",
        recipe=str(folder / f"{name}.yaml"),
        image_size=given.image_size,
        epochs=epochs,
        seed=given.seed,
        device=given.device,
        validation_fraction=0.0,
        augmentation=AUGMENTED.get(given.dataset, Augmentation()),
        output=folder / f"{name}.safetensors",
        **SETTINGS,
    )


def _write_weights(network: Network, path: Path) -> None:
    """Write the float network's weights; equal ones give equal files, so that an interrupted training goes on."""
    state = network.model.state_dict()
    # Copies: safetensors refuses tensors that share memory.
    own = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    write_atomically(path, save(own))


def _training_code() -> str:
    """SHA-256 over training's sources, which a cell's code leaves out."""
    digest = hashlib.sha256()
    for path in sorted(Path(training_package).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]

"""The float network that a table is about: published weights, a file that was given, or training, once.
How a network is trained is training/'s.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pytorch_quantizer.data import has_split
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.training import TrainingConfig, train
from pytorch_quantizer.training.config import weights_path
from pytorch_quantizer.training.flags import parse_training

ELSEWHERE = (
    "data",
    "download",
    "output",
    "resume",
    "workers",
)  # settings that say where things are, not what comes out


def published_weights(data: Path, name: str) -> Path:
    """The file NAME beside the images. Raises InputError where it isn't there."""
    if not (data / name).is_file():
        raise InputError(f"{data} holds no {name}: put the published weights there, or give --checkpoint FILE")
    return data / name


def trained_weights(file: Path, data: Path | None, output: Path | None = None) -> Path:
    """The weights that ``scripts/train.py --config FILE --data DATA`` writes; nothing is trained where they are there.

    output: where they go, the config's own place unless given. Raises InputError as train() does, and where weights
    stand there that were trained under other settings.
    """
    config = training_config(file, data, output)
    weights = weights_path(config)
    if weights.is_file():
        _check_settings(weights, config)
        return weights
    if not has_split(config.dataset, data, "train"):
        raise InputError(f"{data} holds no training images of {config.dataset}: add them, or give --checkpoint FILE")
    print(f"training {config.arch} on {config.dataset} as {file} says, {config.epochs} epochs", flush=True)
    report = train(config)
    print(f"wrote {weights}: top-1 {report['test']['top1']:.2%}, after {report['seconds']:.0f} s", flush=True)
    return weights


def training_config(file: Path, data: Path | None, output: Path | None = None) -> TrainingConfig:
    """What the config file says, on the images in ``data``. Raises InputError where it says what can't be."""
    given = {"--config": file, "--data": data, "--output": output}
    return parse_training([text for flag, path in given.items() if path is not None for text in (flag, str(path))])


def _check_settings(weights: Path, config: TrainingConfig) -> None:
    """Whether the report beside the weights is of this config; the weights alone don't say what they are."""
    report = weights.with_suffix(".json")
    try:
        found = json.loads(report.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{report} doesn't say how {weights} was trained: move both away to train anew, or give --checkpoint FILE"
        ) from error
    wanted = json.loads(json.dumps(asdict(config), default=str))
    usual = json.loads(json.dumps(asdict(TrainingConfig()), default=str))  # of settings that an older report lacks
    others = [name for name in wanted if name not in ELSEWHERE and found.get(name, usual[name]) != wanted[name]]
    if others:
        changed = ", ".join(f"{name} {found.get(name)}, here {wanted[name]}" for name in others)
        raise InputError(
            f"{weights} was trained otherwise ({changed}): move it away to train anew, or give --checkpoint FILE"
        )

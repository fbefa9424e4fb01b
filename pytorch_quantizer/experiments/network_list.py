"""Several networks of one job, named with commas: a ResolvedConfig each. What the job is, the commands know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.inference_config import InferenceConfig, ResolvedConfig, resolved, weights_file
from pytorch_quantizer.models import default_preprocessing

ARCH_HELP = "the network, or several with commas; names as `pq run`'s"
CHECKPOINT_HELP = "weights, as many as networks; default: DATA/ARCH.th if it is there, bundled, torchvision's"


def configs_of(given: InferenceConfig) -> list[ResolvedConfig]:
    """One a network, from an InferenceConfig whose arch and checkpoint are texts with commas.

    Raises InputError, before any work, for a network that isn't known or has no weights, and checkpoints that are few.
    """
    archs = [None] if given.arch is None else parse_names("--arch", given.arch)
    paths = [None] * len(archs) if given.checkpoint is None else parse_names("--checkpoint", str(given.checkpoint))
    if len(paths) != len(archs):
        counts = f"{len(archs)}, got {len(paths)}"
        raise InputError(f"--checkpoint must name as many files, with commas, as there are networks, {counts}")
    configs = []
    for arch, checkpoint in zip(archs, paths, strict=True):
        config = resolved(replace(given, arch=arch, checkpoint=None))
        default_preprocessing(config.arch, config.dataset)  # knows the names
        config = replace(config, checkpoint=Path(checkpoint) if checkpoint else _beside(config))
        weights_file(config)
        configs.append(config)
    return configs


def parse_names(flag: str, text: str) -> list[str]:
    """The parts of a text with commas, each once. Raises InputError, naming ``flag``, where one is empty."""
    parts = [part.strip() for part in str(text).split(",")]
    if not all(parts):
        raise InputError(f"{flag} must be a list with commas, got {text!r}")
    return list(dict.fromkeys(parts))


def _beside(config: ResolvedConfig) -> Path | None:
    """Weights that lie beside the images, by the network's name."""
    path = None if config.data is None else config.data / f"{config.arch}.th"
    return path if path is not None and path.is_file() else None

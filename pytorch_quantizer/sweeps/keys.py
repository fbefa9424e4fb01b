"""What makes two points the same: a digest of all that determines a point's numbers, but for the code.
The digests of weights and images are those of experiments/cells.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pytorch_quantizer.data.digest import images_digest
from pytorch_quantizer.environment import choose_device
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.cells import settings, weights_digest
from pytorch_quantizer.experiments.inference_config import ResolvedConfig, load_images, load_model
from pytorch_quantizer.sweeps.point import Point


def keyed(points: Sequence[Point]) -> dict[str, Point]:
    """The points by key, in their order; of those that are the same, under other names, the first.

    Reads weights and images of each network once. Raises InputError that names the network where they can't be read.
    """
    shared: dict[ResolvedConfig, dict[str, Any]] = {}
    found: dict[str, Point] = {}
    for point in points:
        network = point.network
        if network not in shared:
            try:
                shared[network] = _of_network(network)
            except InputError as error:
                raise InputError(f"{network.arch} on {network.dataset}: {error}") from error
        found.setdefault(
            _digest({**shared[network], "seed": point.config.seed, "recipe": settings(point.recipe)}), point
        )
    return found


def _of_network(config: ResolvedConfig) -> dict[str, Any]:
    test, calibration, split = load_images(config)
    return {
        "dataset": config.dataset,
        "arch": config.arch,
        "weights": weights_digest(load_model(config, test)),
        "test_images": images_digest(test),
        "calibration_images": images_digest(calibration),
        "calibration_split": split,
        "calibration_samples": config.calibration_samples,
        "limit": config.limit,
        "batch_size": config.batch_size,
        "strict": config.strict,
        "skip_corrupt": config.skip_corrupt,
        "device": choose_device(config.device).type,
    }


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()[:24]

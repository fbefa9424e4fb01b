"""A point of a sweep: what to run on which images under which recipe, as one value, and the columns that say so.
How it is measured is bench.py's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from pytorch_quantizer.experiments.cells import settings
from pytorch_quantizer.experiments.inference_config import ResolvedConfig
from pytorch_quantizer.quantization.recipe import Recipe


@dataclass(frozen=True)
class Point:
    """config.seed draws the calibration images, recipe.seed what is learned: both are the point's seed."""

    config: ResolvedConfig
    recipe: Recipe

    @property
    def network(self) -> ResolvedConfig:
        """The config without its seed: points of equal networks share images, weights and the float network's run."""
        given = {entry.name: getattr(self.config, entry.name) for entry in fields(ResolvedConfig)}
        return ResolvedConfig(**given | {"seed": 0})

    def columns(self) -> dict[str, Any]:
        """What a row says of its point, whether it could be measured or not."""
        config, recipe = self.config, self.recipe
        return {
            "dataset": config.dataset,
            "arch": config.arch,
            "checkpoint": "" if config.checkpoint is None else str(config.checkpoint),
            "recipe": recipe.name,
            "weights": recipe.weights,
            "activations": recipe.activations,
            "seed": config.seed,
            "deployable": recipe.deployable,
            "calibration_samples": config.calibration_samples,
            "device": "" if config.device is None else config.device.partition(":")[0],
            "settings": json.dumps(changed(recipe)),
        }

    def __str__(self) -> str:
        return f"{self.config.dataset} {self.config.arch} {self.recipe.name} seed {self.config.seed}"


def changed(recipe: Recipe) -> dict[str, Any]:
    """The recipe's fields that aren't the defaults, as JSON has them; without name and seed."""
    usual = settings(Recipe())
    return {name: value for name, value in settings(recipe).items() if name != "seed" and value != usual[name]}

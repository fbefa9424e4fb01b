"""Benches that stand in for the real one: what becomes of a point is in its recipe's name."""

import os
import signal
import time

from pytorch_quantizer.experiments.inference import ResolvedConfig
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.sweeps.bench import Measured
from pytorch_quantizer.sweeps.point import Point
from pytorch_quantizer.sweeps.tasks import Task

FIGURES = {"top1": 0.5, "seconds": 0.0, "error": "", "code": "c"}


def task(name: str, seed: int = 0) -> Task:
    """A task whose key is its recipe's name."""
    return Task(name, Point(ResolvedConfig(seed=seed), Recipe(name=name)))


class Obedient:
    """ "fine": figures; "fails": an error; "dies": the process ends; "dies once FILE": where FILE isn't there yet."""

    def measure(self, point: Point) -> Measured:
        """As the recipe's name says."""
        what, _, file = point.recipe.name.partition(" once ")
        if what == "dies" and not (file and os.path.exists(file)):
            if file:
                open(file, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "sleeps":
            time.sleep(600)
        row = point.columns() | FIGURES | {"settings": str(os.getpid())}
        return Measured(row | ({"error": "it fails"} if what == "fails" else {}), 0.0)


class Stillborn:
    """Can't be made."""

    def __init__(self) -> None:
        os._exit(3)

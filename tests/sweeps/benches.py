"""Benches that stand in for the real one: what becomes of a point is in its recipe's name."""

import contextlib
import io
import os
import signal
import time

import torch

from pytorch_quantizer.experiments.inference_config import ResolvedConfig
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.sweeps.bench import Measured
from pytorch_quantizer.sweeps.point import Point
from pytorch_quantizer.sweeps.tasks import Task
from pytorch_quantizer.user_warnings import warn_user

FIGURES = {"top1": 0.5, "seconds": 0.0, "error": "", "code": "c"}


def task(name: str, seed: int = 0) -> Task:
    """A task of a recipe of that name."""
    return Task(f"{name} {seed}", Point(ResolvedConfig(seed=seed), Recipe(name=name)))


class Obedient:
    """ "fine": figures; "fails": an error; "dies": the process ends; "dies once FILE": where FILE isn't there yet;
    "warns": in settings what a warning of this package looks like.
    """

    def measure(self, point: Point) -> Measured:
        """As the recipe's name says."""
        what, _, file = point.recipe.name.partition(" once ")
        if what == "dies" and not (file and os.path.exists(file)):
            if file:
                open(file, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep({"sleeps": 600, "naps": 0.2}.get(what, 0))
        row = point.columns() | FIGURES | {"settings": str(os.getpid())}
        if what == "tells":
            ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            row["settings"] = f"{torch.get_num_threads()} threads, SIGINT {'ignored' if ignored else 'heard'}"
        if what == "warns":
            with contextlib.redirect_stderr(io.StringIO()) as said:
                warn_user("one\n  two")
            row["settings"] = said.getvalue()
        return Measured(row | ({"error": "it fails"} if what == "fails" else {}), 0.0)


class Stillborn:
    """Can't be made."""

    def __init__(self) -> None:
        os._exit(3)

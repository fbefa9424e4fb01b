"""A first run of a model, so that images that don't fit it end in one clear error before the work begins."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import TypeVar

import torch
from torch import Tensor

from pytorch_quantizer.errors import InputError, first_line

Result = TypeVar("Result")


@torch.no_grad()
def first_run(run: Callable[[Tensor], Result], images: Tensor, whose: str) -> Result:
    """What a model, or a method of one, makes of a few images [N, …].

    whose: images they are, for people. Raises InputError where it can't run on their shape.
    """
    try:
        with redirect_stderr(StringIO()):  # torch.fx prints where in its generated code an error came up
            return run(images)
    except InputError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:  # what a shape that doesn't fit makes a layer raise
        shape = ", ".join(map(str, ["N", *images.shape[1:]]))
        raise InputError(f"the model can't run on {whose} of shape [{shape}]: {first_line(error)}") from error

"""A small sweep as a file, and the rows that it must end with, measured here one after the other."""

import pandas as pd
import torch

from pytorch_quantizer.sweeps.bench import Bench
from pytorch_quantizer.sweeps.keys import keyed
from pytorch_quantizer.sweeps.plan import read_plan
from pytorch_quantizer.sweeps.results import COLUMNS, typed

TEXT = """
recipes:
  - {name: int, grid: {weights: [int8, int4, int3], activations: [int8, int4]}}
  - {name: fails, overrides: [{layers: nothing.*, weights: int4}]}
seeds: [0, 1]
settings: {limit: 100, calibration_samples: 256, batch_size: 64, device: cpu}
"""
POINTS, FAILED = 14, 2


def write(folder):
    """The file."""
    path = folder / "small.yaml"
    path.write_text(TEXT)
    return path


def measured_here(path):
    """The table that a sweep of this file must end with, on one thread; without keeping anything."""
    threads, bench = torch.get_num_threads(), Bench()
    torch.set_num_threads(1)
    try:
        rows = [bench.measure(point).row | {"key": key} for key, point in keyed(read_plan(path)[1]).items()]
    finally:
        torch.set_num_threads(threads)
    return typed(pd.DataFrame(rows, columns=list(COLUMNS)))

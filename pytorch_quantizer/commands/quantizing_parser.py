"""The flags of the commands that quantize a network, run it and report it: `pq run` and `pq compare`.
Those of the recipe alone are recipe_flags.py's.
"""

from __future__ import annotations

import jsonargparse

from pytorch_quantizer.command_line import add_flags, command_parser
from pytorch_quantizer.commands.recipe_flags import add_recipe_flags
from pytorch_quantizer.commands.report_flag import add_report_flag
from pytorch_quantizer.experiments.model_files import ModelFiles
from pytorch_quantizer.experiments.resources import Resources


def quantizing_parser(name: str, description: str | None, config: type) -> jsonargparse.ArgumentParser:
    """The parser: what to run, then the recipe and its fields. config: what to run, an InferenceConfig."""
    made = command_parser(name, description)
    made.add_argument(
        "--summary", action="store_true", help="print every tensor: its bits and range, or why it is float"
    )
    add_report_flag(made)
    add_flags(made, config, "what to run")
    add_flags(made, ModelFiles, "the quantized model as files")
    add_flags(made, Resources, "what learning may take")
    add_recipe_flags(made)
    return made

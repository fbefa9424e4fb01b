"""A TrainingConfig from flags over a config file over the defaults: what `pq train` is given.
What the settings mean is config.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from pytorch_quantizer.command_line import HelpFormatter
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.flag_parser import Parser
from pytorch_quantizer.settings_text import load_commented_yaml
from pytorch_quantizer.training.config import NO_RECIPE, TrainingConfig, require_kept
from pytorch_quantizer.training.given import MEMBERS, NOT_TEXT, read_given


def parse_training(
    arguments: Sequence[str], description: str | None = None, *, page: Path | None = None
) -> TrainingConfig:
    """Read flags, in whatever order, over the file of ``--config`` over defaults; its keys with '_' first are comments.

    page: what --report writes. Raises InputError for settings that aren't known or out of their rule, naming the file
    that they stand in, and where training or the page would write over a file that is read.
    """
    given = read_given([_underscored(argument) for argument in arguments])
    try:
        config: TrainingConfig = jsonargparse.auto_cli(TrainingConfig, args=given.arguments, **_parsing(description))
        if config.recipe is None and given.forgets_recipe():
            raise InputError(NO_RECIPE)
    except InputError as error:
        raise given.placed(error) from error
    require_kept(config, given.files, page)
    return config


def training_parser(description: str | None = None) -> jsonargparse.ArgumentParser:
    """The parser of ``parse_training``."""
    return jsonargparse.auto_parser(TrainingConfig, **_parsing(description))


def _parsing(description: str | None) -> dict[str, Any]:
    jsonargparse.set_loader("commented_yaml", load_commented_yaml, exceptions=(yaml.YAMLError,))
    return {
        "as_positional": False,
        "prog": "pq train",
        "description": description,
        "parser_mode": "commented_yaml",
        "exit_on_error": False,
        "allow_abbrev": False,
        "formatter_class": HelpFormatter,
        "parser_class": _TrainingParser,
    }


class _TrainingParser(Parser):
    """Refuses what jsonargparse would let through as far as a traceback."""

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Any:
        """Raises InputError for a file that isn't text and for a group of settings that is no mapping."""
        try:
            parsed = super().parse_args(args, *rest, **options)
        except UnicodeDecodeError as error:
            raise InputError(f"{NOT_TEXT} {' '.join(args or ())}") from error
        for name, members in MEMBERS.items():
            if not isinstance(parsed.get(name), jsonargparse.Namespace):
                known = ", ".join(members)
                raise InputError(f"{name} must be a mapping that may hold {known}; got {parsed.get(name)!r}")
        return parsed


def _underscored(argument: str) -> str:
    """Let --batch-size mean --batch_size, which is what a config file calls it."""
    flag, equals, value = argument.partition("=")
    return (flag.replace("-", "_").replace("__", "--", 1) if flag.startswith("--") else flag) + equals + value

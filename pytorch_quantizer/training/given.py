"""What a command line and the files that it names give, before jsonargparse makes settings of them.
It says of a mistake in a file neither which file it is nor what is known; what the settings mean is config.py's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from pytorch_quantizer.errors import InputError, did_you_mean
from pytorch_quantizer.settings_text import load_commented_yaml
from pytorch_quantizer.training.config import Augmentation, Qat, TrainingConfig

GROUPS = {"augmentation": Augmentation, "qat": Qat}
MEMBERS = {name: [entry.name for entry in fields(group)] for name, group in GROUPS.items()}
DOTTED = [f"{group}.{name}" for group, names in MEMBERS.items() for name in names]
KNOWN = [*(entry.name for entry in fields(TrainingConfig)), *DOTTED]
FLAGS = ("config", *GROUPS)  # of files of settings
NOT_TEXT = "a config file must be UTF-8 text, YAML or JSON; given was"
REPORT = {"config", "test", "epochs"}  # what only a report of training holds together


@dataclass(frozen=True)
class Given:
    """What is given, and where.

    Attributes:
        arguments: the flags, those that name files of settings in front, so that jsonargparse lets the others win.
        files: of settings, those that flags and groups in a config name.
        places: the file of each setting, named as its flag is (qat.norms); "" where a flag gives it.

    """

    arguments: list[str]
    files: tuple[Path, ...]
    places: Mapping[str, str]

    def placed(self, error: InputError) -> InputError:
        """The error, with the file before it where the setting that it begins with comes from one."""
        flag, _, said = str(error).partition(" ")
        name = flag.removeprefix("--").replace("-", "_")
        place = self.places.get(name)
        return InputError(f"{place}: {name} {said}") if place else error

    def forgets_recipe(self) -> bool:
        """Whether qat is given, if only its defaults, and not a word about a recipe; ``recipe: null`` is one."""
        return "qat" in self.places and "recipe" not in self.places


def read_given(arguments: Sequence[str]) -> Given:
    """Read the files that flags and groups in a config name, and whose settings they hold.

    arguments: flags, spelt with underscores.
    Raises InputError for a file that can't be read, holds no mapping, is a report, or has an unknown key.
    """
    found, others = _divided(arguments)
    files: list[Path] = []
    places: dict[str, str] = {}
    for flag, value in found:
        more, held = _read(f"--{flag}", value, "" if flag == "config" else flag)
        files += more
        places |= held
    named = [argument.partition("=")[0].removeprefix("--") for argument in others if argument.startswith("--")]
    in_front = [f"--{flag}={value}" for flag, value in found]
    return Given([*in_front, *others], tuple(files), places | dict.fromkeys(_with_groups(named), ""))


def _divided(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """(flag, value) of those flags that name files of settings, in the order of FLAGS; the other arguments."""
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in FLAGS:
        flags.add_argument(f"--{flag}", action="append", default=[])
    try:
        found, others = flags.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    return [(flag, value) for flag in FLAGS for value in vars(found)[flag]], others


def _read(named: str, value: str, group: str, outer: str = "") -> tuple[list[Path], dict[str, str]]:
    """(files, places) as Given has them, of a flag, or of a group in a config, ``named`` in messages.

    value: the file, or the settings as text. outer: the config that it stands in, beside which jsonargparse looks for
    the file; "" for a flag's.
    """
    path = os.path.join(os.path.dirname(os.path.normpath(outer)), os.path.expanduser(value))
    place = path if os.path.isfile(path) else outer
    files, places = [Path(path)] * os.path.isfile(path), dict.fromkeys([group] if group else [], place)
    if _is_pipe(path):  # one can be read once, which jsonargparse does
        return files, places
    for name, held in _checked(place or value, _load(named, value, path), group):
        places |= dict.fromkeys(_with_groups([name]), place)
        if name in GROUPS and isinstance(held, str):
            more, inner = _read(f"{place or value}: {name}", held, name, place)
            files += more
            places |= inner
    return files, places


def _with_groups(names: Sequence[str]) -> list[str]:
    """The names, and of qat.norms also qat."""
    return [*names, *(name.partition(".")[0] for name in names)]


def _is_pipe(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _load(named: str, value: str, path: str) -> dict[Any, Any]:
    """What the file at ``path`` holds, or where there is none the text."""
    is_file, shown = os.path.isfile(path), path or "''"
    if os.path.isdir(path):
        raise InputError(f"{named} {shown} is a folder: give a file of settings, YAML or JSON")
    try:
        values = load_commented_yaml(Path(path).read_text(encoding="utf-8") if is_file else value)
    except yaml.YAMLError as error:
        raise InputError(f"{shown} is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{NOT_TEXT} {named} {shown}") from error
    except OSError as error:
        raise InputError(f"cannot read {shown}: {error.strerror}") from error
    if isinstance(values, dict):
        return values
    if not is_file:
        raise InputError(f"{named} {shown} isn't there: give a file of settings, YAML or JSON")
    raise InputError(f"{shown} must hold a mapping of settings, such as epochs: 3; got {type(values).__name__}")


def _checked(place: str, values: Mapping[Any, Any], group: str) -> Iterator[tuple[str, Any]]:
    """The settings by name, of a group ``group.name``. Raises InputError for those that aren't known."""
    if not group and values.keys() >= REPORT:
        raise InputError(
            f"{place} is a report of pq train, not a config: give the file that it was trained with, "
            'or save what stands under "config" in it as a file of its own'
        )
    known = MEMBERS[group] if group else KNOWN
    for key, value in values.items():
        name = f"{group}.{key}" if group else key
        if key not in known:
            inner = [] if group else [entry for entry in DOTTED if entry.partition(".")[2] == key]
            raise InputError(f"{place}: unknown setting {name!r}{did_you_mean(inner[0] if inner else key, known)}")
        yield name, value
        if name in GROUPS and isinstance(value, dict):
            yield from _checked(place, value, name)

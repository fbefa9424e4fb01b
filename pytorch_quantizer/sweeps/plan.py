"""A sweep's file, YAML or JSON, as points: a grid of data sets, networks, recipes and seeds, or a list, all checked.
What is common to all points is settings.py's; a recipe's own rules are Recipe's.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.experiments.inference_config import BUNDLED, InferenceConfig, ResolvedConfig, resolved
from pytorch_quantizer.models import default_preprocessing
from pytorch_quantizer.quantization.recipe import Recipe
from pytorch_quantizer.settings_text import load_commented_yaml
from pytorch_quantizer.sweeps.point import Point
from pytorch_quantizer.sweeps.recipes import parse_recipes
from pytorch_quantizer.sweeps.settings import Settings, expanded

KEYS = ("settings", "datasets", "models", "recipes", "seeds", "points")
GRID = ("datasets", "models", "recipes", "seeds")
DATASET_KEYS, MODEL_KEYS = ("dataset", "data"), ("arch", "checkpoint", "datasets")
POINT_KEYS = ("dataset", "data", "arch", "checkpoint", "recipe", "seed")
HIGHEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Images:
    """A data set by name and folder; None is what an InferenceConfig makes of it."""

    dataset: str | None
    data: Path | None


@dataclass(frozen=True)
class Weights:
    """A network by name and file; datasets: those that it is for, None for all."""

    arch: str | None
    checkpoint: Path | None
    datasets: tuple[str, ...] | None = None


def read_plan(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[Settings, list[Point]]:
    """The common settings and the points of a file, YAML or JSON, in its order: data sets, networks, recipes, seeds.

    overrides: fields of Settings that win over the file's. Keys that start with '_' are comments.
    Raises InputError, which names the file, the key and the rule.
    """
    try:
        return parse_plan(_load(path), overrides or {})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def parse_plan(content: Any, overrides: Mapping[str, Any]) -> tuple[Settings, list[Point]]:
    """What ``read_plan`` gives, of a file that has been read."""
    content = _mapping("a sweep", content, KEYS)
    settings = _settings(content.get("settings") or {}, overrides)
    if ("points" in content) == ("recipes" in content):
        raise InputError("a sweep needs either recipes, with datasets, models and seeds, or points; give one of them")
    for key in GRID:
        if "points" in content and key in content:
            raise InputError(f"points are a list of their own: leave {key} out, or write recipes instead of points")
    points = _listed(settings, content["points"]) if "points" in content else _grid(settings, content)
    _check_names([point.recipe for point in points])
    return settings, points


def _check_names(recipes: Iterable[Recipe]) -> None:
    """Raise InputError where two recipes have one name: nobody could tell their rows apart."""
    named: dict[str, Recipe] = {}
    for recipe in recipes:
        first = named.setdefault(recipe.name, recipe)
        if recipe.replace(seed=first.seed) != first:
            raise InputError(f"two different recipes are called {recipe.name!r}: give each a name of its own")


def _grid(settings: Settings, content: Mapping[str, Any]) -> list[Point]:
    images = [(place, _images(place, entry)) for place, entry in _places("datasets", content.get("datasets", [{}]))]
    networks = [(place, _weights(place, entry)) for place, entry in _places("models", content.get("models", [{}]))]
    recipes = parse_recipes("recipes", _list("recipes", content["recipes"]))
    seeds = [_seed("seeds", seed) for seed in _list("seeds", content.get("seeds", [0]))]
    configs = [
        _config(f"{which} on {where}", settings, those, network)
        for (where, those), (which, network) in product(images, networks)
        if _belong(those, network)
    ]
    if not configs:
        raise InputError("no model is for any of the datasets: check the models' key datasets")
    return [_point(config, recipe, seed) for config, recipe, seed in product(configs, recipes, seeds)]


def _listed(settings: Settings, entries: Any) -> list[Point]:
    return [point for place, entry in _places("points", entries) for point in _entry_points(settings, place, entry)]


def _entry_points(settings: Settings, place: str, entry: Any) -> list[Point]:
    given = _mapping(place, entry, POINT_KEYS)
    if "recipe" not in given:
        raise InputError(f"{place} needs recipe: a shipped recipe's name, a file, or a mapping of its fields")
    images = _images(place, {key: given[key] for key in DATASET_KEYS if key in given})
    weights = _weights(place, {key: given[key] for key in ("arch", "checkpoint") if key in given})
    config = _config(place, settings, images, weights)
    recipes = parse_recipes(f"{place}.recipe", [given["recipe"]])
    return [_point(config, recipe, _seed(f"{place}.seed", given.get("seed", 0))) for recipe in recipes]


def _point(config: ResolvedConfig, recipe: Recipe, seed: int) -> Point:
    return Point(replace(config, seed=seed), recipe.replace(seed=seed))


def _config(place: str, settings: Settings, images: Images, weights: Weights) -> ResolvedConfig:
    """What to run. Raises InputError for a name that isn't known, and a file or folder that isn't there."""
    try:
        return _resolved(settings, images, weights)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _resolved(settings: Settings, images: Images, weights: Weights) -> ResolvedConfig:
    common = {name: value for name, value in asdict(settings).items() if name != "data"}
    data = settings.data if images.data is None and images.dataset != "digits" else images.data
    asked = InferenceConfig(**common, dataset=images.dataset, data=data, arch=weights.arch)
    config = resolved(asked)
    default_preprocessing(config.arch, config.dataset, config.image_size)  # knows the names
    if config.data is not None and not config.data.is_dir():
        raise InputError(f"data must be a folder, there is none at {config.data}")
    return replace(config, checkpoint=_checkpoint(config, weights.checkpoint))


def _checkpoint(config: ResolvedConfig, given: Path | None) -> Path | None:
    """The file given, else the one named after the network beside the images, else None."""
    if given is not None and not given.is_file():
        raise InputError(f"checkpoint must be a file of weights, there is none at {given}")
    beside = None if config.data is None else config.data / f"{config.arch}.th"
    if given is None and beside is not None and beside.is_file():
        return beside
    if given is None and config.dataset != "imagenet" and (config.dataset, config.arch) not in BUNDLED:
        raise InputError(
            f"no weights for {config.arch} on {config.dataset}: give the model a checkpoint (pq train makes one)"
        )
    return given


def _belong(images: Images, weights: Weights) -> bool:
    return weights.datasets is None or (images.dataset or "digits") in weights.datasets


def _images(place: str, entry: Any) -> Images:
    """A name, or {dataset, data}."""
    given = _mapping(place, {"dataset": entry} if isinstance(entry, str) else entry, DATASET_KEYS)
    data = None if given.get("data") is None else expanded(f"{place}.data", given["data"])
    return Images(_text(f"{place}.dataset", given.get("dataset")), data)


def _weights(place: str, entry: Any) -> Weights:
    """A name, or {arch, checkpoint, datasets}."""
    given = _mapping(place, {"arch": entry} if isinstance(entry, str) else entry, MODEL_KEYS)
    file = None if given.get("checkpoint") is None else expanded(f"{place}.checkpoint", given["checkpoint"])
    names = given.get("datasets")
    names = [names] if isinstance(names, str) else names
    only = None if names is None else tuple(str(name) for name in _list(f"{place}.datasets", names))
    return Weights(_text(f"{place}.arch", given.get("arch")), file, only)


def _settings(given: Any, overrides: Mapping[str, Any]) -> Settings:
    known = tuple(entry.name for entry in fields(Settings))
    try:
        return Settings(**_mapping("settings", given, known) | dict(overrides))
    except InputError as error:
        raise InputError(f"settings: {error}".replace("settings: settings", "settings")) from error


def _seed(place: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= HIGHEST_SEED:
        raise InputError(f"{place} must be whole numbers of 0 or more, got {value!r}")
    return value


def _text(place: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place} must be a name, got {value!r}; quote it")
    return value


def _places(place: str, entries: Any) -> Iterable[tuple[str, Any]]:
    return ((f"{place}[{number}]", entry) for number, entry in enumerate(_list(place, entries)))


def _list(place: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{place} must be a list with at least one entry, got {value!r}")
    return value


def _mapping(place: str, value: Any, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{place} must be a mapping of {', '.join(known)}, got {value!r}")
    for key in value:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise InputError(f"{place} has an unknown key {key!r}: {hint}")
    return value


def _load(path: Path) -> Any:
    try:
        return load_commented_yaml(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"neither YAML nor JSON: {' '.join(str(error).split())}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from error

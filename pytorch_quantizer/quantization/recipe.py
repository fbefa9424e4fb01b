"""Recipe: what the user wants of a quantized model, a pure value that equals its YAML file.
Which tensors that concerns is graph/'s business.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pytorch_quantizer import ops
from pytorch_quantizer.atomic import write_atomically
from pytorch_quantizer.errors import InputError
from pytorch_quantizer.quantization.clipping import check_clipping
from pytorch_quantizer.quantization.qtypes import NumberType

GRANULARITIES = ("per_tensor", "per_channel")
BIASES = ("int32", "float32")


@dataclass(frozen=True)
class Override:
    """Other settings for the layers and operations whose name matches a pattern (fnmatch: ``layer1.*``, ``*.conv2``).

    weights: their weights' number type. activations: that of the tensors they read. clip, weight_clip: as Recipe's.
    None keeps what the recipe says. Later overrides win.
    """

    layers: str
    weights: str | None = None
    activations: str | None = None
    clip: str | None = None
    weight_clip: str | None = None

    def __post_init__(self) -> None:
        """Check each setting that is given."""
        for number_type in (self.weights, self.activations):
            if number_type is not None:
                NumberType.parse(number_type)
        for clip in (self.clip, self.weight_clip):
            if clip is not None:
                check_clipping(clip)


@dataclass(frozen=True)
class Recipe:
    """How a model is to be quantized. Raises InputError where a field is unknown or out of its rule.

    name: for tables. weights, activations: number types, int1 … int16 or float32; a layer's activations are the tensors
    it reads. residual: tensors that only additions read. first, last: both of the first and the last layer; these three
    never narrow what the other layers have, and None means the same as they. wide_residual: a tensor that a layer and
    an addition read carries a second quantization, residual's, for the addition. clip, weight_clip: clipping.CLIPPINGS.
    weight_granularity: per_channel or per_tensor. weight_symmetric, weight_narrow, activation_symmetric: kinds of grid.
    activation_symmetric also makes the codes signed. bias: int32 (the grid of the accumulators) or float32.
    rounding: of weights and activations, one of ops.ROUNDINGS. overrides: by layer-name pattern.
    deployable: admit only what integer kernels can run (int32 biases, round half to even); false admits everything.
    """

    name: str = "custom"
    weights: str = "int8"
    activations: str = "int8"
    residual: str | None = "int8"
    first: str | None = "int8"
    last: str | None = "int8"
    wide_residual: bool = False
    clip: str = "minmax"
    weight_clip: str = "minmax"
    weight_granularity: str = "per_channel"
    weight_symmetric: bool = True
    weight_narrow: bool = True
    activation_symmetric: bool = False
    bias: str = "int32"
    rounding: str = "half_even"
    deployable: bool = True
    overrides: tuple[Override, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        """Check every field, so that a Recipe that exists is one that can be carried out."""
        for number_type in (self.weights, self.activations, self.residual, self.first, self.last):
            if number_type is not None:
                NumberType.parse(number_type)
        check_clipping(self.clip)
        check_clipping(self.weight_clip)
        _check_member("weight_granularity", self.weight_granularity, GRANULARITIES)
        _check_member("bias", self.bias, BIASES)
        _check_member("rounding", self.rounding, ops.ROUNDINGS)
        object.__setattr__(self, "overrides", tuple(_as_override(entry) for entry in self.overrides))
        self._check_deployable()

    def _check_deployable(self) -> None:
        for name, value, needed in (("bias", self.bias, "int32"), ("rounding", self.rounding, "half_even")):
            if self.deployable and value != needed:
                raise InputError(f"{name}={value!r} can't run in integer kernels; set deployable: false to simulate it")

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """A recipe shipped with the package, by name, or a YAML file's. Raises InputError where neither is there."""
        path = Path(name_or_path).expanduser()
        if path.suffix in (".yaml", ".yml") or path.is_file():
            return cls.from_yaml(_read(path), source=str(path))
        shipped = resources.files("pytorch_quantizer") / "recipes" / f"{name_or_path}.yaml"
        if not shipped.is_file():
            raise InputError(
                f"no recipe named {str(name_or_path)!r}; shipped are {', '.join(list_recipes())}, or give a YAML file"
            )
        return cls.from_yaml(shipped.read_text(encoding="utf-8"), source=str(name_or_path))

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "recipe") -> Recipe:
        """Parse YAML; fields that are absent keep their defaults. Raises InputError that names ``source``."""
        try:
            values = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise InputError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise InputError(f"{source} must hold a mapping of recipe fields, got {type(values).__name__}")
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"{source}: unknown recipe field {key!r}{_did_you_mean(str(key), known)}")
        return cls(**values)

    def to_yaml(self) -> str:
        """Every field, as YAML that ``from_yaml`` reads back equal."""
        values: dict[str, Any] = asdict(self)
        values["overrides"] = [{k: v for k, v in entry.items() if v is not None} for entry in values["overrides"]]
        return yaml.safe_dump(values, sort_keys=False)

    def save(self, path: str | Path) -> None:
        """Write the YAML file, whole or not at all."""
        write_atomically(Path(path), self.to_yaml().encode())

    def replace(self, **changes: Any) -> Recipe:
        """The same with some fields changed. Raises InputError for a field that isn't one."""
        known = [f.name for f in fields(self)]
        for key in changes:
            if key not in known:
                raise InputError(f"unknown recipe field {key!r}{_did_you_mean(key, known)}")
        return replace(self, **changes)

    def matching(self, layer: str) -> list[Override]:
        """The overrides whose pattern matches a layer's name, in order."""
        return [override for override in self.overrides if fnmatchcase(layer, override.layers)]


def list_recipes() -> list[str]:
    """The names of the recipes that are shipped."""
    folder = resources.files("pytorch_quantizer") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}") from error


def _as_override(entry: Override | dict[str, Any]) -> Override:
    if isinstance(entry, Override):
        return entry
    known = [f.name for f in fields(Override)]
    unknown = [key for key in entry if key not in known]
    if unknown or "layers" not in entry:
        raise InputError(f"an override needs 'layers' and may hold {', '.join(known[1:])}; got {entry}")
    return Override(**entry)


def _check_member(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{_did_you_mean(value, allowed)}")


def _did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f"; known: {', '.join(known)}"

"""Recipe: what the user wants of a quantized model, a pure value that equals its file in YAML or JSON.
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
from pytorch_quantizer.errors import InputError, did_you_mean
from pytorch_quantizer.quantization.allocation_fields import ALLOCATIONS, check_allocation
from pytorch_quantizer.quantization.bias_correction import ACTIVATION_CORRECTIONS, CORRECTIONS, FORMS
from pytorch_quantizer.quantization.clipping import CLIPPINGS, check_clipping, usage
from pytorch_quantizer.quantization.deployable_fields import check_deployable
from pytorch_quantizer.quantization.dynamic_fields import DYNAMIC, DYNAMIC_LAYERS, check_dynamic, layers_in_order
from pytorch_quantizer.quantization.qtypes import NUMBER_TYPES, NumberType
from pytorch_quantizer.quantization.reconstruction_fields import LEARNED, RECONSTRUCTIONS, check_reconstruction
from pytorch_quantizer.quantization.tuning_fields import check_tuning
from pytorch_quantizer.settings_text import dump_settings, load_commented_yaml
from pytorch_quantizer.user_path import user_path

NUMBER_TYPE_NAMES = "int1 … int16, " + ", ".join(
    name if entry.fixed_bits else f"{name}BITS" for name, entry in NUMBER_TYPES.items() if name != "int"
)
CLIPPING_USAGE = ", ".join(map(usage, CLIPPINGS))
RENAMED = {f"{bits}_gptq": f"{bits}_second_order" for bits in ("w4a4", "w3a3", "w2a4")}  # shipped recipes, once
OUTPUT_MSE = "output_mse"  # weights' range by the error of the layer's outputs (quantization/output_error.py)
GRANULARITIES = ("per_tensor", "per_channel")
OPEN = "default: 8 bits, or as the others where they are wider"
BIASES = ("int32", "float32")
CHOICES = {
    "weight_granularity": GRANULARITIES,
    "activation_granularity": GRANULARITIES,
    "statistics": ("offline", "online", DYNAMIC),
    "across_batches": ("max", "mean"),
    "weight_allocation": ALLOCATIONS,
    "activation_allocation": ALLOCATIONS,
    "allocation_prior": ("laplace", "gaussian"),
    "mixed_precision": ("none", "weights", "activations", "both"),
    "mixed_precision_criterion": ("noise", "measured"),
    "weight_rounding": ("nearest", "gptq", "second_order"),
    "rounding_order": ("columns", "size"),
    "weight_correction": CORRECTIONS,
    "weight_correction_form": FORMS,
    "activation_correction": ACTIVATION_CORRECTIONS,
    "correction_source": ("empirical", "analytic"),
    "reconstruction": RECONSTRUCTIONS,
    "reconstruction_learns": LEARNED,
    "bias": BIASES,
    "rounding": ops.ROUNDINGS,
}


def _setting(default: Any, text: str) -> Any:
    """A field with the one-line help that scripts show for its flag."""
    return field(default=default, metadata={"help": text})


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
        if not isinstance(self.layers, str):
            raise InputError(f"an override's layers must be a pattern, got {self.layers!r}")
        for number_type in (self.weights, self.activations):
            if number_type is not None:
                NumberType.parse(number_type)
        if self.clip is not None:
            check_clipping(self.clip)
        if self.weight_clip is not None:
            check_weight_clipping(self.weight_clip)


@dataclass(frozen=True)
class Recipe:
    """How a model is to be quantized; the text beside each field is also its flag's help.

    A layer's activations are the tensors it reads. Where first, last and residual are None, those tensors have 8 bits,
    or what the others have where that is wider. statistics dynamic quantizes weights and inputs of ``dynamic_layers``
    and nothing else, each input on the range of its own batch; all outputs and biases stay in float.
    Raises InputError where a field is unknown or out of its rule.
    """

    name: str = "custom"
    weights: str = _setting("int8", f"number type of weights: {NUMBER_TYPE_NAMES} or float32")
    activations: str = _setting("int8", "number type of the tensors that layers read")
    residual: str | None = _setting(None, "number type of the tensors that only additions read; " + OPEN)
    first: str | None = _setting(None, "number type of the first layer's weights and input; " + OPEN)
    last: str | None = _setting(None, "number type of the last layer's weights and input; " + OPEN)
    wide_residual: bool = _setting(False, "give additions that share a tensor with a layer one of the residual type")
    clip: str = _setting("minmax", f"range of activations: {CLIPPING_USAGE}")
    weight_clip: str = _setting("minmax", f"range of weights: the same, or {OUTPUT_MSE}, the layer's outputs' error")
    statistics: str = _setting(
        "offline",
        "offline: ranges from calibration; online: from each batch; dynamic: the same, of what layers read alone",
    )
    dynamic_layers: str = _setting(
        "linear, recurrent", f"layers that statistics dynamic quantizes, of {', '.join(DYNAMIC_LAYERS)}"
    )
    across_batches: str = _setting("max", "observed range of activations: max over the batches, or the mean of theirs")
    weight_granularity: str = _setting("per_channel", "per_channel or per_tensor")
    activation_granularity: str = _setting("per_tensor", "per_tensor or per_channel")
    weight_allocation: str = _setting(
        "none", "bits of each output channel: none (all alike), or by quota: bits, bins, midtread"
    )
    activation_allocation: str = _setting(
        "none", "bits of each activation channel: none, or by quota: bits, bins, midtread"
    )
    allocation_prior: str = _setting("laplace", "density that bit allocation assumes: laplace or gaussian")
    mixed_precision: str = _setting("none", "bits of each layer under the same total: none, weights, activations, both")
    mixed_precision_budget: float | None = _setting(
        None, "mean bits of a value that mixed_precision spends, unless given what the number types have"
    )
    mixed_precision_criterion: str = _setting(
        "noise", "what mixed_precision keeps small: noise, predicted; or measured, each width's error at the outputs"
    )
    mixed_precision_size: float | None = _setting(
        None, "what mixed_precision lets all weights take: bytes, or at most 1 the share of their float32 size"
    )
    mixed_precision_bit_operations: float | None = _setting(
        None, "billions of bit operations of an image, MACs times both bits, that mixed_precision keeps to"
    )
    equalize: bool = _setting(False, "cross-layer equalization of weights before anything else")
    weight_rounding: str = _setting(
        "nearest",
        "codes of weights: nearest; gptq, each input's error made good by the next ones'; second_order: the same for "
        "what the float layer gives, with scales and biases that suit",
    )
    rounding_damping: float = _setting(0.01, "of gptq and second_order: share of the mean squared input added to each")
    rounding_order: str = _setting("columns", "of gptq and second_order: inputs as they are, or by falling size")
    weight_correction: str = _setting("none", "weights' moments given back: none, mean, variance or both")
    weight_correction_form: str = _setting("corrected", "corrected, or paper: equation 13 as printed")
    activation_correction: str = _setting("none", "activations' moments given back: none, mean, gain or both")
    correction_source: str = _setting("empirical", "empirical: from images; analytic: from batch norms, the mean alone")
    correction_images: int = _setting(512, "calibration images that corrections are measured on; as many as take 8 GiB")
    batch_norm_reestimation: bool = _setting(False, "batch norms measured again on the quantized network")
    reconstruction: str = _setting(
        "none", "what is learned, on calibration's images, to come near the float network: none, each layer or block"
    )
    reconstruction_learns: str = _setting("both", "weights' rounding, activations' steps below 8 bits, or both")
    reconstruction_drop: float = _setting(0.5, "share of values let through in float: QDrop's 0.5, BRECQ's 0")
    reconstruction_iterations: int = _setting(2000, "steps that each block is learned in")
    reconstruction_batch: int = _setting(32, "images of each such step")
    reconstruction_images: int = _setting(1024, "calibration images that blocks are learned on")
    reconstruction_blocks: str = _setting(
        "",
        "patterns, divided by commas: the layers that match one are one block; default: as the graph has them",
    )
    tuning_epochs: int = _setting(0, "passes in which scales, biases and steps are learned end to end, after all else")
    tuning_rate: float = _setting(0.01, "of tuning: a scale's change in one step of Adam, at the most, as its share")
    tuning_weight_rate: float = _setting(
        0.0, "of tuning: a weight's change in one such step, at the most, in steps of its grid; 0: codes stay"
    )
    tuning_batch: int = _setting(32, "images of each step of tuning")
    tuning_blocks: float = _setting(0.0, "of tuning: weight of the blocks' outputs' distance beside the outputs'")
    tuning_mirror: bool = _setting(False, "of tuning: images turned left to right half of the time")
    tuning_images: int = _setting(1024, "calibration images of tuning")
    seed: int = 0  # of what learning draws; no flag of its own: scripts give theirs
    weight_symmetric: bool = _setting(True, "weights have zero point 0")
    weight_narrow: bool = _setting(True, "symmetric weights leave out the lowest code")
    activation_symmetric: bool = _setting(False, "activations have zero point 0, and signed codes where they need them")
    bias: str = _setting("int32", "int32, the grid of the layer's sums, or float32")
    rounding: str = _setting("half_even", "half_even, half_away or stochastic")
    deployable: bool = _setting(True, "admit only what integer kernels can run")
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        """Check every field, so that a Recipe that exists is one that can be carried out."""
        for number_type in (self.weights, self.activations):
            NumberType.parse(number_type)
        for optional in (self.residual, self.first, self.last):
            if optional is not None:
                NumberType.parse(optional)
        check_clipping(self.clip)
        check_weight_clipping(self.weight_clip)
        for name, allowed in CHOICES.items():
            _check_member(name, getattr(self, name), allowed)
        self._check_plain_fields()
        object.__setattr__(self, "dynamic_layers", layers_in_order(self.dynamic_layers))
        object.__setattr__(self, "overrides", tuple(_as_override(entry) for entry in self.overrides))
        self._check_output_ranges()
        self._check_corrections()
        for check in (check_dynamic, check_allocation, check_reconstruction, check_tuning, check_deployable):
            check(self)

    def _check_plain_fields(self) -> None:
        """Names and switches: YAML makes numbers of some and text of others, and a text "false" would count as true."""
        for entry in fields(self):
            if isinstance(entry.default, bool) and not isinstance(getattr(self, entry.name), bool):
                raise InputError(f"{entry.name} must be true or false, got {getattr(self, entry.name)!r}")
        images = self.correction_images
        if not isinstance(images, int) or isinstance(images, bool) or images < 1:
            raise InputError(f"correction_images must be a whole number of 1 or more, got {images!r}")
        damping = self.rounding_damping
        if isinstance(damping, bool) or not isinstance(damping, int | float) or not 1e-6 <= damping <= 1:
            raise InputError(f"rounding_damping must be from 1e-06 to 1, got {damping!r}")
        if not isinstance(self.name, str):
            raise InputError(f"name must be text, got {self.name!r}; quote it")
        if not isinstance(self.overrides, list | tuple):
            raise InputError(f"overrides must be a list of mappings that hold 'layers', got {self.overrides!r}")

    def _check_output_ranges(self) -> None:
        chosen = [self.weight_clip, *(override.weight_clip for override in self.overrides)]
        if OUTPUT_MSE in chosen and self.weight_allocation != "none":
            raise InputError(
                f"weight_clip {OUTPUT_MSE} is for channels of the same bits, which weight_allocation "
                f"{self.weight_allocation} divides: set weight_clip mse, or weight_allocation none"
            )

    def _check_corrections(self) -> None:
        """What the fields of corrections ask of one another."""
        gain = self.activation_correction in ("gain", "both") or self.weight_correction in ("variance", "both")
        if gain and self.weight_granularity == "per_tensor":
            raise InputError(
                "a gain a channel goes into the weights' scales: it needs weight_granularity per_channel; "
                "or correct the mean alone"
            )
        if self.correction_source == "analytic" and self.activation_correction in ("gain", "both"):
            raise InputError(
                "correction_source analytic knows means alone: set activation_correction mean, or the source empirical"
            )
        if self.weight_correction_form == "paper" and self.weight_correction not in ("none", "both"):
            raise InputError("weight_correction_form paper is mean and variance together: set weight_correction both")

    @classmethod
    def load(cls, name_or_path: str | Path) -> Recipe:
        """A recipe shipped with the package, by name, or a file's, YAML or JSON; InputError where neither is there."""
        if not isinstance(name_or_path, str | Path):
            raise InputError(
                f"a recipe is a Recipe, the name of a shipped one or a file, got {type(name_or_path).__name__}: "
                "Recipe(clip='mse', …) makes one of fields"
            )
        path = user_path(name_or_path)
        if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
            return cls.from_yaml(_read(path), source=str(path))
        shipped = resources.files("pytorch_quantizer") / "recipes" / f"{name_or_path}.yaml"
        if str(name_or_path) in RENAMED:
            raise InputError(f"no recipe named {str(name_or_path)!r}: it is called {RENAMED[str(name_or_path)]} now")
        if not shipped.is_file():
            close = difflib.get_close_matches(str(name_or_path), list_recipes(), n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            shown = ", ".join(list_recipes())
            raise InputError(
                f"no recipe named {str(name_or_path)!r}{hint}; shipped are {shown}, or give a file, YAML or JSON"
            )
        return cls.from_yaml(shipped.read_text(encoding="utf-8"), source=str(name_or_path))

    @classmethod
    def from_yaml(cls, text: str, *, source: str = "recipe") -> Recipe:
        """Parse YAML or JSON; fields that are absent keep their defaults, keys that begin with _ are comments.

        Raises InputError that names ``source``.
        """
        try:
            values = load_commented_yaml(text) or {}
        except yaml.YAMLError as error:
            raise InputError(f"{source} is not YAML or JSON: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise InputError(f"{source} must hold a mapping of recipe fields, got {type(values).__name__}")
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"{source}: unknown recipe field {key!r}{did_you_mean(key, known)}")
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error

    def to_yaml(self) -> str:
        """Every field, as YAML that ``from_yaml`` reads back equal."""
        values: dict[str, Any] = asdict(self)
        values["overrides"] = [{k: v for k, v in entry.items() if v is not None} for entry in values["overrides"]]
        return dump_settings(values)

    def save(self, path: str | Path) -> None:
        """Write the YAML file, whole or not at all."""
        write_atomically(Path(path), self.to_yaml().encode())

    def replace(self, **changes: Any) -> Recipe:
        """The same with some fields changed. Raises InputError for a field that isn't one."""
        known = [f.name for f in fields(self)]
        for key in changes:
            if key not in known:
                raise InputError(f"unknown recipe field {key!r}{did_you_mean(key, known)}")
        return replace(self, **changes)

    def matching(self, layer: str) -> list[Override]:
        """The overrides whose pattern matches a layer's name, in order."""
        return [override for override in self.overrides if fnmatchcase(layer, override.layers)]


def check_weight_clipping(method: str) -> str:
    """The method itself; beside clipping.CLIPPINGS a weight's may be output_mse. Raises InputError for others."""
    return method if method == OUTPUT_MSE else check_clipping(method)


def list_recipes() -> list[str]:
    """The names of the recipes that are shipped."""
    folder = resources.files("pytorch_quantizer") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the recipe {path}: it is not UTF-8 text") from error


def _as_override(entry: Override | dict[str, Any]) -> Override:
    if isinstance(entry, Override):
        return entry
    known = [f.name for f in fields(Override)]
    if not isinstance(entry, dict) or "layers" not in entry or any(key not in known for key in entry):
        raise InputError(f"an override needs 'layers' and may hold {', '.join(known[1:])}; got {entry}")
    return Override(**entry)


def _check_member(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{did_you_mean(value, allowed)}")

"""Reading a model's weights from a file, whoever wrote it: .safetensors, or torch's format with weights_only.
Packed checkpoints of quantized models live in export/.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import GoogLeNet, Inception3

from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.packed_mark import is_packed
from pytorch_quantizer.user_path import user_path

StateDict = OrderedDict[str, Tensor]

WEIGHTS = Path(__file__).parent / "weights"
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
# Auxiliary classifiers of GoogLeNet and Inception serve training only; create_model builds without them.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# torchvision's published DenseNets were saved when these sub-modules had a dot in their names: norm.1 is now norm1.
OLD_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
SHOWN = 3  # keys named in a message, of each kind


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load the weights in `path` into `model`: every tensor of the model, from every tensor of the file.

    A nested 'state_dict' or 'model' is unwrapped, a 'module.' prefix stripped, auxiliary classifiers that the model
    was built without dropped, a missing 'num_batches_tracked' accepted (inference never reads it).
    Raises InputError for a file that isn't a checkpoint and for one that doesn't fit, naming a few keys and their
    number; after a misfit the model's weights are not to be used.
    """
    path = user_path(path)
    if is_packed(path):
        raise InputError(
            f"{path} is a packed checkpoint of a quantized model, which pq.load reads: "
            "give the weights of the float network that it was made from"
        )
    load_state(model, _read(path), source=str(path))


def load_state(model: nn.Module, content: Any, *, source: str) -> None:
    """load_checkpoint for what a file held; `source` is its name in error messages."""
    state = _without_auxiliary(_renamed(_state_dict(content, source)), model)
    own = model.state_dict()
    misshapen = [key for key in state if key in own and state[key].shape != own[key].shape]
    if misshapen:
        _report(source, model, _needed(own.keys() - state.keys()), state.keys() - own.keys(), misshapen, state)
    # torchvision's MNASNet asks for the version of the file's layout; formats that hold none are of the current one.
    state._metadata = getattr(state, "_metadata", None) or own._metadata  # type: ignore[attr-defined]
    missing, unexpected = model.load_state_dict(state, strict=False)
    if _needed(missing) or unexpected:
        _report(source, model, _needed(missing), unexpected, [], state)


def bundled_checkpoint(name: str) -> Path:
    """Give the path of a checkpoint that ships with the package, such as "digits_resnet20"."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        names = sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))
        raise InputError(f"no bundled checkpoint {name!r}: there is {', '.join(names) or 'none'}")
    return path


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"checkpoint {path} is not a file: check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is not a checkpoint, or holds more than weights and loading it could run code: "
            f"save model.state_dict() in it instead"
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} can't be read as a checkpoint ({first_line(error)}): get it anew") from error


def _state_dict(content: Any, source: str) -> StateDict:
    """Collect the tensors of a file by name, unwrapped; what is no tensor (an epoch, an accuracy) is left out."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    named = content if isinstance(content, dict) else {}
    state: StateDict = OrderedDict((str(key), value) for key, value in named.items() if isinstance(value, Tensor))
    if not state:
        found = f"it holds {', '.join(map(str, list(named)[:SHOWN])) or type(content).__name__}"
        raise InputError(f"{source} holds no state_dict ({found}): save model.state_dict() in it")
    if hasattr(content, "_metadata"):
        state._metadata = content._metadata  # type: ignore[attr-defined]
    return state


def _renamed(state: StateDict) -> StateDict:
    """Strip the prefixes of wrappers and bring old DenseNet names up to date."""
    for prefix in PREFIXES * 2:  # a wrapper may hold another, either way round
        if all(key.startswith(prefix) for key in state):
            nn.modules.utils.consume_prefix_in_state_dict_if_present(state, prefix)  # keeps _metadata in step
    old = [key for key in state if OLD_DENSENET_KEY.match(key)]
    for key in old:
        state[OLD_DENSENET_KEY.sub(r"\1\2", key)] = state.pop(key)
    return state


def _without_auxiliary(state: StateDict, model: nn.Module) -> StateDict:
    if not isinstance(model, GoogLeNet | Inception3) or model.aux_logits:
        return state
    for key in [key for key in state if key.startswith(AUXILIARY)]:
        del state[key]
    return state


def _report(
    source: str,
    model: nn.Module,
    missing: Iterable[str],
    unexpected: Iterable[str],
    misshapen: list[str],
    state: StateDict,
) -> None:
    own = model.state_dict()
    shapes = [f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}" for key in misshapen]
    kinds = {"missing": sorted(missing), "unexpected": sorted(unexpected), "misshapen": shapes}
    found = "; ".join(_few(kind, keys) for kind, keys in kinds.items() if keys)
    raise InputError(
        f"{source} doesn't fit {type(model).__name__}: {found}: pass the arch, classes and channels it was made for"
    )


def _few(kind: str, keys: list[str]) -> str:
    more = ", …" if len(keys) > SHOWN else ""
    return f"{len(keys)} {kind} ({', '.join(keys[:SHOWN])}{more})"


def _needed(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if not key.endswith("num_batches_tracked")]

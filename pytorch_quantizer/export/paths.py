"""Names and paths that a file gives to modules and tensors: which ones can do no harm, and putting things there.

torch.fx writes them into the source text of ``forward`` as they are, so none may end a string, be a keyword, or be an
attribute of the model's own class.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from typing import Any

from torch import Tensor, nn

from pytorch_quantizer.errors import InputError
from pytorch_quantizer.graph.quantized_model import QuantizedModel

MOST_LEVELS = 64  # of modules inside modules
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def check_identifier(name: Any) -> str:
    """The name itself, of a node or an argument. Raises InputError where source text can't hold it as one."""
    plain = isinstance(name, str) and IDENTIFIER.fullmatch(name) is not None
    if not plain or keyword.iskeyword(name) or name == "self" or name.startswith("__"):
        raise InputError(f"the file names a node or an argument {_shown(name)}, which no graph can have")
    return str(name)


def check_path(path: Any) -> list[str]:
    """The parts of a path of a module or a tensor, "layer1.0.conv1". Raises InputError for one that no model has."""
    parts = path.split(".") if isinstance(path, str) else []
    sound = 0 < len(parts) <= MOST_LEVELS and all(map(_is_sound, parts)) and not hasattr(QuantizedModel, parts[0])
    if not sound:
        raise InputError(f"the file has something at {_shown(path)}, a path that no model has")
    return parts


def _is_sound(part: str) -> bool:
    """Whether a part is text that stays what it is inside quotes, and as an attribute in source text."""
    plain = part.isprintable() and unicodedata.normalize("NFKC", part) == part and not set(part) & set("\"\\'")
    return bool(part) and plain and not keyword.iskeyword(part) and not part.startswith("__")


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def put_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Make ``module`` the submodule of that path; owners that aren't there yet are made."""
    *owners, name = check_path(path)
    _owner(root, owners).add_module(name, module)


def put_tensor(root: nn.Module, path: str, tensor: Tensor, *, trainable: bool | None = None) -> None:
    """Give a parameter or, where ``trainable`` is None, a buffer its values. Raises InputError where they don't fit."""
    *owners, name = check_path(path)
    owner = _owner(root, owners)
    declared = owner._buffers.get(name) if trainable is None else owner._parameters.get(name)
    if declared is not None and (declared.shape, declared.dtype) != (tensor.shape, tensor.dtype):
        made_for = f"{declared.dtype} {list(declared.shape)}"
        raise InputError(f"{path} is {tensor.dtype} {list(tensor.shape)}, its module is made for {made_for}")
    if trainable is not None:
        owner.register_parameter(name, nn.Parameter(tensor, requires_grad=trainable))
    elif name in owner._buffers:
        owner._buffers[name] = tensor
    else:
        owner.register_buffer(name, tensor)


def find(root: nn.Module, path: Any) -> Any:
    """The module or tensor of that path; None where there is none. Nothing but modules' own is looked at."""
    *owners, name = check_path(path)
    owner: Any = root
    for part in owners:
        owner = owner._modules.get(part)
        if owner is None:
            return None
    places = (owner._modules, owner._parameters, owner._buffers)
    return next((place[name] for place in places if name in place), None)


def _owner(root: nn.Module, parts: list[str]) -> nn.Module:
    owner = root
    for part in parts:
        if owner._modules.get(part) is None:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    return owner

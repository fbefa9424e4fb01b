"""What training keeps on disk: the weights that others load, and the state that an interrupted run goes on from.
Both are safetensors, written whole or not at all; nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pytorch_quantizer.atomic import atomic_path
from pytorch_quantizer.data import ImageDataset
from pytorch_quantizer.data.digest import images_digest
from pytorch_quantizer.digests import digest_tensor, file_digest
from pytorch_quantizer.errors import InputError, first_line
from pytorch_quantizer.export.checkpoint import load, save
from pytorch_quantizer.graph.quantized_model import QuantizedModel
from pytorch_quantizer.models import create_model
from pytorch_quantizer.quantization.recipe import Override, Recipe
from pytorch_quantizer.training.config import TrainingConfig, state_path
from pytorch_quantizer.training.pupil import Pupil

# Settings that don't decide what comes out.
ELSEWHERE = ("data", "download", "workers", "resume", "output", "tensorboard", "mlflow")
DIGEST = "digest"  # of the state, a tensor in it
RANDOM, CUDA_RANDOM = "random_state", "cuda_random_state"  # of torch's own generators, which dropout draws from


def save_weights(network: nn.Module, path: Path, config: TrainingConfig, data: ImageDataset, **measured: Any) -> None:
    """Write a network: a quantized one packed, as pq.save does, a float one's tensors, what it is in the metadata."""
    if isinstance(network, QuantizedModel):
        save(network, path)
        return
    about = {
        "arch": config.arch,
        "dataset": config.dataset,
        "num_classes": data.num_classes,
        "in_channels": data.in_channels,
        **measured,
    }
    # One key: safetensors writes several in an order that changes from run to run, and equal runs give equal files.
    _write(path, network.state_dict(), {"training": json.dumps(about)})


def load_weights(path: Path, config: TrainingConfig, data: ImageDataset) -> nn.Module:
    """Read back what save_weights wrote."""
    if config.recipe is not None:
        return load(path)
    return create_model(config.arch, num_classes=data.num_classes, in_channels=data.in_channels, checkpoint=path)


def save_state(
    config: TrainingConfig, identity: Mapping[str, Any], pupil: Pupil, history: list[dict[str, Any]]
) -> None:
    """Write everything that the next epoch depends on. identity: ``identity_of`` the run."""
    optimizer = pupil.optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in pupil.model.state_dict().items()}
    if pupil.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in pupil.average.averaged.state_dict().items()}
    for index, values in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors[RANDOM] = torch.get_rng_state()
    if _device(pupil).type == "cuda":
        tensors[CUDA_RANDOM] = torch.cuda.get_rng_state(_device(pupil))
    said = {
        "identity": identity,
        "history": history,
        "steps": pupil.scheduler.last_epoch,
        "rates": [group["lr"] for group in optimizer["param_groups"]],
    }
    text = json.dumps(said)
    tensors[DIGEST] = digest_tensor(tensors, text)
    _write(state_path(config), tensors, {"state": text})


def load_state(config: TrainingConfig, identity: Mapping[str, Any], pupil: Pupil) -> list[dict[str, Any]]:
    """Put the state of an interrupted run into a fresh pupil; its history, empty where there is no such run.

    identity: ``identity_of`` this run. Raises InputError where that one had another, and for a file that can't be read.
    """
    path = state_path(config)
    if not config.resume or not path.is_file():
        return []
    said, tensors = _read(path)
    if changed := changed_settings(said["identity"], identity):
        raise InputError(
            f"{path} is of an interrupted run with other settings ({changed}): give those to go on with it, "
            "or --resume false to begin anew"
        )
    pupil.model.load_state_dict(_part(tensors, "model."))
    if pupil.average is not None:
        pupil.average.averaged.load_state_dict(_part(tensors, "average."))
        pupil.average.steps = said["steps"]
    _load_optimizer(pupil, _part(tensors, "optimizer."), said)
    torch.set_rng_state(tensors[RANDOM])
    if CUDA_RANDOM in tensors and _device(pupil).type == "cuda":
        torch.cuda.set_rng_state(tensors[CUDA_RANDOM], _device(pupil))
    history: list[dict[str, Any]] = said["history"]
    return history


def settings_of(config: TrainingConfig) -> dict[str, Any]:
    """Those settings that decide what comes out, as JSON has them."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    return {name: value for name, value in settings.items() if name not in ELSEWHERE}


def identity_of(config: TrainingConfig, data: ImageDataset) -> dict[str, Any]:
    """All that decides what comes out: the settings, and of the files that they name not where they lie but what
    they hold. data: the training split. Raises InputError for files that can't be read.
    """
    identity = settings_of(config)
    identity["images"] = f"sha256 {images_digest(data)}"
    if config.checkpoint is not None:
        identity["checkpoint"] = f"sha256 {file_digest(config.checkpoint)}"
    if config.recipe is not None:
        identity |= _settings_of_recipe(Recipe.load(config.recipe))
        del identity["recipe"]
    return identity


def _settings_of_recipe(recipe: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return {f"recipe.{name}": value for name, value in values.items()}


def changed_settings(known: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """What another run's identity has otherwise, as text; "" where it is the same run.

    What that run's version of this package didn't know yet was at its default.
    """
    known = _completed(known)
    others = [name for name in {**known, **identity} if known.get(name) != identity.get(name)]
    in_float = ("recipe" in known) != ("recipe" in identity)  # one of the two
    if in_float or ("recipe.name" in others and known["recipe.name"] != Recipe.name):  # a name says its fields
        others = [name for name in others if not name.startswith("recipe.")]
        others += ["recipe"] if "recipe" in known else _named_or_set(known)
    return ", ".join(f"{name} {_shown(known.get(name))}" for name in others)


def _named_or_set(known: Mapping[str, Any]) -> list[str]:
    """By what an identity's recipe is told: its name, or where it has none what it sets."""
    if known["recipe.name"] != Recipe.name:
        return ["recipe.name"]
    usual = _settings_of_recipe(Recipe())
    return [name for name in usual if known[name] != usual[name]] or ["recipe.name"]


def _completed(known: Mapping[str, Any]) -> dict[str, Any]:
    """An identity with what it lacks at its default: settings, members of their groups, fields of the recipe."""
    usual = settings_of(TrainingConfig())
    if "recipe" not in known:  # its fields stand in its place
        del usual["recipe"]
        usual |= _settings_of_recipe(Recipe())
    whole = usual | dict(known)
    groups = {name: value | whole[name] for name, value in usual.items() if isinstance(value, dict)}
    overrides = [asdict(Override("")) | entry for entry in whole.get("recipe.overrides", ())]
    return whole | groups | ({"recipe.overrides": overrides} if overrides else {})


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _load_optimizer(pupil: Pupil, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
    state = pupil.optimizer.state_dict()
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        values.setdefault(int(index), {})[key] = tensor
    for group, rate in zip(state["param_groups"], said["rates"], strict=True):
        group["lr"] = rate
    pupil.optimizer.load_state_dict({"state": values, "param_groups": state["param_groups"]})
    pupil.scheduler.last_epoch = said["steps"]


def _device(pupil: Pupil) -> torch.device:
    return next(pupil.model.parameters()).device


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    # Copies: safetensors refuses tensors that share memory.
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(own, temporary, metadata=metadata)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})["state"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if not torch.equal(tensors.pop(DIGEST), digest_tensor(tensors, text)):
            raise ValueError("it is damaged")
        return json.loads(text), tensors
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} can't be read as the state of an interrupted run ({first_line(error)}): remove it to begin anew"
        ) from error

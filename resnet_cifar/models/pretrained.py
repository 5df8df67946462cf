"""Initial weights (`model.init_from`): of a run, an exported model, a folder or Hub repository of timm, a file or W&B.

A folder or repository may be the `model.name` too, and then its config.json says what model that is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from resnet_cifar import hub_access, wandb_artifacts
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data, Recipe
from resnet_cifar.models import mlp_head
from resnet_cifar.models.cifar_stem import SUFFIX
from resnet_cifar.models.factory import DOWNLOAD_ERRORS, explain_download
from resnet_cifar.models.mlp_head import head_module

_HUB, _FOLDER = "hf-hub:", "local-dir:"  # as in timm
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar")
_NAMED = 3  # weights that a refusal names
_SET_BY_RECIPES = ("num_classes", "img_size", "in_chans", "drop_rate", "drop_path_rate")  # among timm's options

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class InitialWeights:
    """A .safetensors file, and timm's config.json beside it, if any. `start` is what the recipe calls it."""

    start: str
    file: Path
    config: dict[str, Any]

    @cached_property
    def shapes(self) -> Shapes:
        """The shapes of the tensors by name. Raises UserError if the file is damaged."""
        try:
            with safe_open(self.file, "pt") as saved:
                return {name: tuple(saved.get_slice(name).get_shape()) for name in saved.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"model.init_from {self.start!r}: {self.file} cannot be read ({error}): {_FIX}") from None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the outputs, in order; empty if unknown."""
        names = self.config.get("label_names") or self.config.get("pretrained_cfg", {}).get("label_names") or ()
        return tuple(map(str, names.values() if isinstance(names, dict) else names))

    def normalization_remark(self, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
        """A sentence if the weights were trained with another normalization than (mean, std), otherwise ""."""
        theirs = self.config.get("pretrained_cfg", self.config)
        used = tuple(theirs.get("mean", mean)), tuple(theirs.get("std", std))
        return "" if used == (mean, std) else f"its images were normalized with mean {used[0]} and std {used[1]}"


_FIX = "name a finished run, a folder with config.json and model.safetensors, a .safetensors file, or hf-hub:OWNER/NAME"


def find_init_weights(start: str) -> InitialWeights:
    """The weights that `model.init_from` names, downloaded if they are on the Hub or W&B. Raises UserError."""
    if start.startswith(_HUB):
        return InitialWeights(start, _download(start, _WEIGHTS), _read_config(start, _download(start, _CONFIG)))
    path = wandb_artifacts.fetch_model(start) if wandb_artifacts.is_location(start) else _local(start)
    if path.suffix in _PICKLES and path.is_file():
        raise UserError(
            f"model.init_from {start!r} may be a pickle, which can run code: save its weights with "
            "safetensors.torch.save_file, and name that file"
        )
    if path.is_file():
        return InitialWeights(start, path, {})
    folder = _folder(path)
    if not (folder / _WEIGHTS).is_file():
        missing = (folder / _WEIGHTS).relative_to(path) if path.is_dir() else "file or folder of that name"
        raise UserError(f"model.init_from {start!r} has no {missing}: {_FIX}")
    return InitialWeights(start, folder / _WEIGHTS, _read_config(start, folder / _CONFIG))


def _local(start: str) -> Path:
    return Path(start.removeprefix(_FOLDER)).expanduser()


def _folder(path: Path) -> Path:
    """The folder of timm's files: that of the exported model, if `path` is a run."""
    return path / "model" if (path / "recipe.yaml").is_file() or (path / "model").is_dir() else path


def _download(start: str, name: str, field: str = "model.init_from") -> Path:
    repository, _, revision = start.removeprefix(_HUB).partition("@")
    try:
        download = partial(hf_hub_download, repository, name, revision=revision or None)
        return Path(hub_access.fetch_once(f"{repository} {name} {revision}", download))
    except HFValidationError:
        raise UserError(f"{field} {start!r} is no repository of the Hub: name hf-hub:OWNER/NAME") from None
    except DOWNLOAD_ERRORS as error:
        failure = explain_download(error, repository)
        raise UserError(
            f"{field} {start!r} cannot be loaded, because {failure.reason}: {failure.fix}, or name other weights"
        ) from None


def _read_config(start: str, file: Path, field: str = "model.init_from") -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{field} {start!r}: {file} cannot be read ({error}): {_FIX}") from None
    return config if isinstance(config, dict) else {}


def is_place(name: str) -> bool:
    """Whether this `model.name` is a place with timm's config.json instead of an architecture."""
    return name.startswith((_HUB, _FOLDER))


def read_place(name: str) -> dict[str, Any]:
    """The config.json of a `model.name` that is a place. Raises UserError."""
    file = _download(name, _CONFIG, "model.name") if name.startswith(_HUB) else _folder(_local(name)) / _CONFIG
    config = _read_config(name, file, "model.name")
    architecture = config.get("architecture")
    if not architecture:
        raise UserError(
            f"model.name {name!r} has no config.json that names an architecture: name a folder or repository that "
            "timm's save_for_hf wrote"
        )
    if architecture == mlp_head.NAME:
        raise UserError(
            f"model.name {name!r} has dense layers before its classifier: set model.name and model.head to those of "
            f"its recipe, and model.init_from to {name}"
        )
    if not timm.is_model(architecture):
        raise UserError(
            f"model.name {name!r} is a {architecture!r}, which this timm does not know: update timm, or name another "
            "model"
        )
    options = {key: value for key, value in config.get("model_args", {}).items() if key not in _SET_BY_RECIPES}
    stock = _form(architecture, {}) if options else None
    if others := [key for key, value in options.items() if _form(architecture, {key: value}) != stock]:
        raise UserError(
            f"model.name {name!r} is made with options of timm that recipes do not have ({', '.join(others)}): name "
            "another model"
        )
    return config


def _form(architecture: str, options: dict[str, Any]) -> tuple[str, Shapes] | None:
    """The layers of a timm model and the shapes of its weights; None if it does not take the options."""
    try:
        with torch.device("meta"):
            model = timm.create_model(architecture, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError):
        return None
    return repr(model), {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def at_place(recipe: Recipe, config: dict[str, Any]) -> Recipe:
    """The recipe whose `model.name` is a place with this config.json, as the architecture and weights found there.

    Images are normalized as its config says, and resized so, unless the recipe has another interpolation than by
    default. Without `model.pretrained` the weights stay where they are, as in timm.
    """
    model, data, found = recipe.model, recipe.data, config.get("pretrained_cfg", config)
    architecture = config["architecture"].removesuffix(SUFFIX)
    stem = "cifar" if architecture != config["architecture"] else model.stem
    start = model.init_from or (model.name if model.pretrained else "")
    stock = timm.get_pretrained_cfg(architecture)
    mean, std = (tuple(found.get(name, getattr(stock, name))) for name in ("mean", "std"))
    if data.normalize == "model" and (mean, std) != (tuple(stock.mean), tuple(stock.std)):
        data = replace(data, normalize=(*mean, *std))
    if data.interpolation == Data().interpolation and found.get("interpolation") in ("bilinear", "nearest"):
        data = replace(data, interpolation=found["interpolation"])
    return replace(recipe, model=replace(model, name=architecture, stem=stem, init_from=start), data=data)


def load_init_weights(model: nn.Module, found: InitialWeights, classes: tuple[str, ...]) -> str:
    """Loads the weights into `model`, whose outputs are `classes`, on the CPU. Raises UserError if they do not fit.

    A head of another shape or for other classes is not loaded; returns why, or "".
    """
    names, reason = check_init_weights(model, found), ""
    if len(names) < len(model.state_dict()):
        reason = "its head has another shape"
    elif found.classes and found.classes != classes:
        others = sorted({*found.classes} - {*classes})
        more = ", ..." if len(others) > _NAMED else ""
        reason = f"its head is for other classes ({', '.join(others[:_NAMED])}{more})"
        reason = reason if others else "its head has the classes in another order"
        names = [name for name in names if not name.startswith(_heads(model))]
    weights = load_file(found.file)
    model.load_state_dict({name: weights[name] for name in names}, strict=False)
    return reason


def check_init_weights(model: nn.Module, found: InitialWeights) -> list[str]:
    """The names of the weights that `model` can load, by their shapes: all of them, or those of its body.

    Raises UserError, which names what does not fit, if the bodies differ.
    """
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    heads = _heads(model)
    here, there = ({n: s for n, s in shapes.items() if not n.startswith(heads)} for shapes in (ours, found.shapes))
    if here != there:
        names = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        parts = [f"{name} {_describe(there.get(name))} there and {_describe(here.get(name))} here" for name in names]
        more = f", and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
        raise UserError(
            f"model.init_from {found.start!r} does not fit model.name: {', '.join(parts[:_NAMED])}{more}; "
            + _matching_fields(model, found.config)
        )
    return list(ours if found.shapes == ours else here)


def _describe(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"is {list(shape)}"


def _matching_fields(model: nn.Module, config: dict[str, Any]) -> str:
    """The fields of a recipe that make the model of this config.json, instead of `model`."""
    architecture, size = config.get("architecture"), config.get("pretrained_cfg", config).get("input_size")
    if not architecture or architecture == mlp_head.NAME:
        return "set model.name and model.stem to those of its recipe"
    if architecture == model.pretrained_cfg["architecture"] and model.pretrained_cfg.get("fixed_input_size") and size:
        return f"set data.image_size to {size[-1]}"
    name = architecture.removesuffix(SUFFIX)
    return f"set model.name to {name}" + f" and model.stem to {'cifar' if name != architecture else 'imagenet'}"


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of head weights: the model's own, timm's, and that of MLP heads."""
    stock = model.pretrained_cfg.get("classifier") or ()
    stock = (stock,) if isinstance(stock, str) else tuple(stock)
    own = (name for name, module in model.named_modules() if module is head_module(model))
    return tuple(f"{name}." for name in (*stock, *own, mlp_head.NAME))

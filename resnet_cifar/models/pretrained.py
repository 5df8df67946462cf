"""Initial weights (`model.init_from`): of a run, an exported model, a folder or Hub repository of timm, or a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from resnet_cifar.config.errors import UserError
from resnet_cifar.models import mlp_head
from resnet_cifar.models.cifar_stem import SUFFIX
from resnet_cifar.models.factory import DOWNLOAD_ERRORS, explain_download
from resnet_cifar.models.mlp_head import head_module

_HUB, _FOLDER = "hf-hub:", "local-dir:"  # as in timm
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar")
_NAMED = 3  # weights that a refusal names

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
    """The weights that `model.init_from` names, downloaded if they are on the Hub. Raises UserError."""
    if start.startswith(_HUB):
        return _download(start)
    path = Path(start.removeprefix(_FOLDER)).expanduser()
    if path.suffix in _PICKLES and path.is_file():
        raise UserError(
            f"model.init_from {start!r} may be a pickle, which can run code: save its weights with "
            "safetensors.torch.save_file, and name that file"
        )
    if path.is_file():
        return InitialWeights(start, path, {})
    folder = path / "model" if (path / "recipe.yaml").is_file() or (path / "model").is_dir() else path
    if not (folder / _WEIGHTS).is_file():
        missing = (folder / _WEIGHTS).relative_to(path) if path.is_dir() else "file or folder of that name"
        raise UserError(f"model.init_from {start!r} has no {missing}: {_FIX}")
    return InitialWeights(start, folder / _WEIGHTS, _read_config(start, folder / _CONFIG))


def _download(start: str) -> InitialWeights:
    repository, _, revision = start.removeprefix(_HUB).partition("@")
    try:
        files = [Path(hf_hub_download(repository, name, revision=revision or None)) for name in (_WEIGHTS, _CONFIG)]
    except HFValidationError:
        raise UserError(f"model.init_from {start!r} is no repository of the Hub: name hf-hub:OWNER/NAME") from None
    except DOWNLOAD_ERRORS as error:
        failure = explain_download(error, repository)
        raise UserError(
            f"model.init_from {start!r} cannot be loaded, because {failure.reason}: {failure.fix}, or name other "
            "weights"
        ) from None
    return InitialWeights(start, files[0], _read_config(start, files[1]))


def _read_config(start: str, file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"model.init_from {start!r}: {file} cannot be read ({error}): {_FIX}") from None
    return config if isinstance(config, dict) else {}


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
            + _matching_model(found.config.get("architecture"))
        )
    return list(ours if found.shapes == ours else here)


def _describe(shape: tuple[int, ...] | None) -> str:
    return "is missing" if shape is None else f"is {list(shape)}"


def _matching_model(architecture: str | None) -> str:
    """The fields of a recipe that make a model of this architecture."""
    if not architecture or architecture == mlp_head.NAME:
        return "set model.name and model.stem to those of its recipe"
    name = architecture.removesuffix(SUFFIX)
    return f"set model.name to {name}" + f" and model.stem to {'cifar' if name != architecture else 'imagenet'}"


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of head weights: the model's own, timm's, and that of MLP heads."""
    stock = model.pretrained_cfg.get("classifier") or ()
    stock = (stock,) if isinstance(stock, str) else tuple(stock)
    own = (name for name, module in model.named_modules() if module is head_module(model))
    return tuple(f"{name}." for name in (*stock, *own, mlp_head.NAME))

"""What is evaluated: a run, a checkpoint or an exported model, recognized by its files or downloaded from W&B.

Imports nothing heavy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from resnet_cifar import wandb_artifacts
from resnet_cifar.checkpoints.run_dir import check_version
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_yaml, with_overrides
from resnet_cifar.config.schema import Recipe


@dataclass(frozen=True)
class Target:
    """A directory with weights, as named by the user. `artifact`: its name in the cache, if it was downloaded."""

    path: Path
    kind: Literal["run", "checkpoint", "model"]
    artifact: str = ""

    @property
    def run(self) -> Path | None:
        """The run directory that it is or lies in; None for a checkpoint or model outside of a run directory."""
        here = self.path.resolve()
        if self.kind == "run":
            return self.path
        if self.kind == "checkpoint":
            lies_in_one = here.parent.name == "checkpoints"
            folder = here.parent.parent
        else:
            lies_in_one = here.name == "model"
            folder = here.parent
        return folder if lies_in_one and (folder / "recipe.yaml").is_file() else None

    @property
    def has_recipe(self) -> bool:
        """Whether the recipe of its training is known: an exported model has none without its run."""
        return self.kind == "checkpoint" or self.run is not None

    @property
    def exports(self) -> Path:
        """Where `resnet-cifar export` writes its files."""
        return Path(f"{self.artifact}-export") if self.artifact else (self.run or self.path) / "export"

    @property
    def results(self) -> Path:
        """Where results are written: the run directory, or NAME-scores beside it (checkpoints are never modified).

        Those of an artifact are written to the working directory.
        """
        if self.artifact:
            return Path(f"{self.artifact}-scores")
        here = self.path.resolve()
        return self.run or here.with_name(f"{here.name}-scores")


def find_target(path: Path) -> Target:
    """The run (recipe.yaml), checkpoint (state.json) or exported model (config.json) at `path`. Raises UserError.

    wandb:ENTITY/PROJECT/NAME:ALIAS is the model of that artifact.
    """
    if wandb_artifacts.is_location(str(path)):
        entry = wandb_artifacts.fetch_model(str(path))
        return Target(entry / "model", "model", entry.name)
    check_version(path)
    for kind, file in (("run", "recipe.yaml"), ("checkpoint", "state.json"), ("model", "config.json")):
        if (path / file).is_file():
            return Target(path, kind)
    raise UserError(
        f"{path} is not a run directory, checkpoint or exported model (it has no recipe.yaml, state.json or "
        "config.json): name RUN, RUN/checkpoints/step-... or RUN/model"
    )


def checkpoint_recipe(path: Path) -> dict[str, Any]:
    """The nested fields of the recipe in a checkpoint. Raises UserError."""
    recipe = _object(path / "state.json", "is not a checkpoint's").get("recipe")
    if not isinstance(recipe, dict):
        raise UserError(
            f"{path / 'state.json'} is not a checkpoint's (it holds no recipe): use one that train.py wrote"
        )
    return recipe


@dataclass(frozen=True)
class Export:
    """The config.json of a model written by train.py or timm's `save_for_hf`, except its mean and std.

    `is_ours`: whether train.py wrote it. `stored_size`, `value_range`, `decode_mode`: see `Decoding`; None if unknown.
    """

    architecture: str
    classes: tuple[str, ...]
    image_size: int
    interpolation: str
    crop: float
    temperature: float | None
    is_ours: bool
    stored_size: tuple[int, int] | None
    value_range: tuple[float, float] | None
    decode_mode: str
    fingerprint: str | None


def read_export_config(path: Path) -> Export:
    """Reads config.json of the exported model in `path`. Raises UserError that names what is missing."""
    file = path / "config.json"
    config = _object(file, "is not that of a timm model")
    if not (path / "model.safetensors").is_file():
        raise UserError(
            f"{path} has no model.safetensors: export with timm.models.save_for_hf(..., safe_serialization=True)"
        )
    data, own = config.get("pretrained_cfg", config), config.get("preprocess", {})
    try:
        names = config.get("label_names") or data.get("label_names")
        names = [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else names
        count, size = config.get("num_classes", data.get("num_classes")), data["input_size"]
        found = Export(
            architecture=config.get("architecture") or data["architecture"],
            classes=tuple(map(str, names or ())),
            image_size=size[-1],
            interpolation=own.get("interpolation") or data.get("interpolation") or "bicubic",
            crop=data.get("crop_pct") or 1.0,
            temperature=config.get("temperature"),
            is_ours=bool(own),
            stored_size=own.get("stored_size") and tuple(own["stored_size"]),
            value_range=own.get("value_range") and tuple(own["value_range"]),
            decode_mode=own.get("decode_mode", "crop"),
            fingerprint=config.get("fingerprint"),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} is not that of a timm model ({type(error).__name__}: {error}): export it again"
        ) from None
    if count == 1:
        raise UserError(f"{file} has one output: use a classifier with two or more classes")
    if len(set(found.classes)) != count:
        raise UserError(
            f"{file} names {len(set(found.classes))} classes for {count} outputs, and classes are matched by name: "
            "give it label_names, a different one for each output"
        )
    if list(size) != [3, found.image_size, found.image_size]:
        raise UserError(f"{file} has input_size {size}: only square RGB images can be evaluated")
    return found


def recipe(target: Target, overrides: dict[str, str] | None = None) -> Recipe:
    """The recipe the target was trained with, with `overrides`. Raises UserError.

    An exported model has its own input size and interpolation; without its run, only `data` and `precision` apply.
    """
    if target.kind == "checkpoint":
        return with_overrides(checkpoint_recipe(target.path), overrides)
    values = read_yaml(str(target.run / "recipe.yaml")) if target.run else {}
    if target.kind == "model":
        exported = read_export_config(target.path)
        size = {"image_size": exported.image_size, "interpolation": exported.interpolation}
        values["data"] = {**values.get("data", {}), **size, "decode_mode": exported.decode_mode}
        if not target.has_recipe:
            values["model"] = {"name": exported.architecture, "pretrained": False}
    return with_overrides(values, overrides)


def _object(file: Path, otherwise: str) -> dict[str, Any]:
    """The JSON object in `file`. Raises UserError: the file `otherwise`."""
    try:
        values = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"{file} {otherwise} ({reason}): use an undamaged one") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} {otherwise} (it holds no object): use an undamaged one")
    return values

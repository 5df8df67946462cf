"""Exports a trained model in timm's own format."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from resnet_cifar.atomic_io import atomic_folder
from resnet_cifar.config.schema import Recipe
from resnet_cifar.models.factory import input_size_options, normalization
from resnet_cifar.models.mlp_head import NAME as MLP_HEAD


def needs_package(architecture: str) -> bool:
    """Whether timm knows the architecture only after `import resnet_cifar`."""
    return timm.models.model_entrypoint(architecture).__module__.startswith("resnet_cifar.")


def export_model(
    model: nn.Module,
    folder: Path,
    recipe: Recipe,
    classes: tuple[str, ...],
    weights: dict[str, Tensor],
    geometry: Mapping[str, Any],
    facts: Mapping[str, Any],
    card: str = "",
    before_rename: Callable[[], None] = lambda: None,
) -> None:
    """Writes `weights` in timm's format: `timm.create_model("local-dir:FOLDER", pretrained=True)` loads them.

    The folder is replaced by `atomic_folder`, with `before_rename`; an OSError leaves it as it was. A CIFAR stem or an
    MLP head needs `import resnet_cifar` first. `geometry` and the `facts` that are not None enter config.json: what
    timm's transform needs (`Preprocess.timm_config`), and `temperature`, which divides logits, `preprocess`
    (`Preprocess.facts`) and the training images' `fingerprint`. `card`: the text of README.md.
    """
    mean, std = normalization(model, recipe)
    name, options = model.pretrained_cfg["architecture"], getattr(model, "entrypoint_options", {})
    with torch.device("meta"):  # allocates nothing: `weights` are assigned
        exported = timm.create_model(name, num_classes=len(classes), **input_size_options(recipe), **options)
    exported.load_state_dict({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, assign=True)
    # The size and crop that timm's original weights were tested with do not apply to these.
    original = {name: value for name, value in model.pretrained_cfg.items() if not name.startswith("test_")}
    size = (3, recipe.data.image_size, recipe.data.image_size)
    exported.pretrained_cfg = {**original, "input_size": size, "mean": mean, "std": std, **geometry}
    config = {"label_names": list(classes), **{name: fact for name, fact in facts.items() if fact is not None}}
    with atomic_folder(folder, before_rename) as aside:
        _save(exported, aside, config)
        if name != MLP_HEAD:
            saved = json.loads((aside / "config.json").read_text())
            # Stated twice: transformers' TimmWrapper passes both to timm and fails.
            del saved["model_args"]["num_classes"]
            (aside / "config.json").write_text(json.dumps(saved, indent=2))
        if card:
            (aside / "README.md").write_text(card, encoding="utf-8")
        shutil.copymode(aside / "config.json", aside / "model.safetensors")  # safetensors writes for the owner alone


def _save(model: nn.Module, folder: Path, config: dict[str, Any]) -> None:
    """timm's save_for_hf. Raises OSError, also for what safetensors raises in its own way, such as a full disk."""
    try:
        timm.models.save_for_hf(model, folder, model_config=config, safe_serialization=True)
    except SafetensorError as error:
        if not (number := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None

"""Exports a trained model in timm's own format."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import timm
import timm.data
import torch
from torch import Tensor, nn

from resnet_cifar.config.schema import Recipe
from resnet_cifar.models.factory import input_size_options, normalization


def needs_package(architecture: str) -> bool:
    """Whether timm knows the architecture only after `import resnet_cifar`."""
    return timm.models.model_entrypoint(architecture).__module__.startswith("resnet_cifar.")


def export_model(
    model: nn.Module,
    folder: Path,
    recipe: Recipe,
    classes: tuple[str, ...],
    weights: dict[str, Tensor],
    facts: Mapping[str, float | str | None],
    card: str = "",
) -> None:
    """Writes `weights` in timm's format: `timm.create_model("local-dir:FOLDER", pretrained=True)` loads them.

    The folder is written aside and renamed. A CIFAR stem or an MLP head needs `import resnet_cifar` first. config.json
    also holds the `facts` that are not None: `temperature`, which divides logits, and the training images'
    `decode_size` and `fingerprint`. `card`: the text of README.md.
    """
    mean, std = normalization(model, recipe)
    size = recipe.data.image_size
    name, options = model.pretrained_cfg["architecture"], getattr(model, "entrypoint_options", {})
    with torch.device("meta"):  # allocates nothing: `weights` are assigned
        exported = timm.create_model(name, num_classes=len(classes), **input_size_options(recipe), **options)
    exported.load_state_dict({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, assign=True)
    exported.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (3, size, size),
        "mean": mean,
        "std": std,
        "interpolation": recipe.data.interpolation,
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    aside = folder.with_name(folder.name + ".writing")
    shutil.rmtree(aside, ignore_errors=True)
    config = {"label_names": list(classes), **{name: fact for name, fact in facts.items() if fact is not None}}
    timm.models.save_for_hf(exported, aside, model_config=config, safe_serialization=True)
    if card:
        (aside / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)

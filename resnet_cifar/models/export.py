"""TODO."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import timm
import timm.data
import torch
from torch import Tensor, nn

from resnet_cifar.config.schema import Recipe
from resnet_cifar.models.factory import _input_size, normalization


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

    The folder is written aside and renamed. A CIFAR stem or a deep head loads after `import resnet_cifar`. config.json
    keeps `facts` besides, of which None is left out (`temperature`, that logits are to be divided by; `decode_size` and
    `fingerprint` of the images that it was trained on). `card`: what README.md says of it.
    """
    mean, std = normalization(model, recipe)
    size = recipe.data.image_size
    name, remake = model.pretrained_cfg["architecture"], getattr(model, "remake", {})
    with torch.device("meta"):  # neither drawn nor copied: the weights are taken as they are
        clean = timm.create_model(name, num_classes=len(classes), **_input_size(recipe), **remake)
    clean.load_state_dict({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, assign=True)
    clean.pretrained_cfg = {
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
    timm.models.save_for_hf(clean, aside, model_config=config, safe_serialization=True)
    if card:
        (aside / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)

"""The kinds of sources, and which of them a name refers to."""

from __future__ import annotations

import re
from pathlib import Path

from resnet_cifar import hub_access
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data.sources import (
    archive,
    cifar_batches,
    hf_disk,
    hf_hub,
    image_folder,
    kaggle,
    npz,
    parquet_folder,
    synthetic,
)
from resnet_cifar.data.sources.base import FolderSource, Source

FOLDERS: tuple[FolderSource, ...] = (hf_disk, cifar_batches, kaggle, image_folder)  # any other folder: parquet_folder
FILES: dict[str, Source] = {".npz": npz, **dict.fromkeys(archive.ENDINGS, archive)}


def find_source(source: str) -> Source:
    """The kind of `source`: `synthetic`, an existing file or folder, or a hub id. Raises UserError.

    A folder of that name takes precedence over a hub id, as in `datasets`.
    """
    if source == "synthetic":
        return synthetic
    path = Path(source).expanduser()
    if path.is_dir():
        return next((kind for kind in FOLDERS if kind.recognizes(path)), parquet_folder)
    if kind := next((kind for ending, kind in FILES.items() if path.name.lower().endswith(ending)), None):
        if path.is_file():
            return kind
        raise UserError(f"data.source {source!r} is not a file here: check its path")
    if path.is_file():
        raise UserError(
            f"data.source {source!r} is a file that is not read by itself: name its folder, {str(path.parent)!r}"
        )
    if re.fullmatch(r"(?=.{3,96}$)[\w.-]+/[\w.-]+", source) and not source.startswith("."):  # as huggingface_hub
        return hf_hub
    raise UserError(
        f"data.source {source!r} is not a folder, archive or .npz file here, nor a hub id (OWNER/NAME) or `synthetic`: "
        "use uoft-cs/cifar10, a folder of class folders, or synthetic"
    )


def go_offline_if_unreachable(recipe: Recipe) -> None:
    """Looks whether the hub answers, if `recipe` needs it: see `hub_access.go_offline_if_unreachable`.

    Raises UserError where the source or the hub's variables are invalid.
    """
    source = recipe.data.source
    # The kind of a folder is not determined here: that takes a walk through all of it.
    from_hub = not Path(source).expanduser().is_dir() and find_source(source) is hf_hub
    name, start = recipe.model.name, recipe.model.init_from
    weights = start.startswith("hf-hub:") if start else recipe.model.pretrained and not name.startswith("local-dir:")
    if from_hub or weights or name.startswith("hf-hub:"):
        hub_access.check_variables()
        hub_access.go_offline_if_unreachable()

"""TODO."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data


def find_source(source: str) -> ModuleType:
    """The module that reads `source`: `synthetic`, a file or folder that exists, or a hub id. Raises UserError.

    A folder of that name wins over a hub id, as it does for `datasets`.
    """
    from resnet_cifar.data.sources import (
        cifar_batches,
        hf_disk,
        hf_hub,
        image_folder,
        kaggle,
        npz,
        parquet_folder,
        synthetic,
    )

    if source == "synthetic":
        return synthetic
    path = Path(source).expanduser()
    if path.is_dir():
        return next(
            (kind for kind in (hf_disk, cifar_batches, kaggle, image_folder) if kind.holds(path)), parquet_folder
        )
    files = {
        ".npz": npz,
        ".zip": kaggle,
        ".7z": kaggle,
        ".tar.gz": cifar_batches,
        ".tgz": cifar_batches,
        ".tar": cifar_batches,
    }
    if ending := next((ending for ending in files if path.name.lower().endswith(ending)), None):
        if path.is_file():
            return files[ending]
        raise UserError(f"data.source {source!r} is no file here: check its path")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        return hf_hub
    raise UserError(
        f"data.source {source!r} is no folder, archive or .npz file here, no hub id (OWNER/NAME) and not `synthetic`: "
        "take uoft-cs/cifar10, a folder of class folders, or synthetic"
    )


def check_source_fields(data: Data, kind: ModuleType) -> None:
    """Raises UserError where fields describe what this kind of source does not have."""
    given = {"name": data.config_name, "splits": data.splits.train or data.splits.test}
    given["columns"] = data.columns.image or data.columns.label
    for name, value in given.items():
        if value and name not in kind.READS:
            raise UserError(f"data.{name} {value!r} says nothing about data.source {data.source!r}: leave it out")

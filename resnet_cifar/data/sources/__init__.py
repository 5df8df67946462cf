"""A name -> images and labels. One module a kind, each with two functions:

identity(source) -> str     what the cache is keyed by: changes whenever the images may have changed
read(source) -> Splits      every image, decoded
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from resnet_cifar.recipe import Mistake


@dataclass(frozen=True)
class Splits:
    """A decoded data set: `images[split]` uint8 [n, height, width, 3], `labels[split]` int64 [n], class names."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: tuple[str, ...]


def find(source: str) -> ModuleType:
    """The module that reads `source`: `synthetic`, an existing folder, or a hub id. Raises Mistake.

    A folder of that name wins over a hub id, as it does for `datasets`.
    """
    if source == "synthetic":
        from resnet_cifar.data.sources import synthetic

        return synthetic
    path = Path(source).expanduser()
    if path.is_dir():
        from resnet_cifar.data.sources import folder

        return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        from resnet_cifar.data.sources import hub

        return hub
    raise Mistake(
        f"data.source {source!r} is no folder here, no hub id (OWNER/NAME) and not `synthetic`: "
        "take uoft-cs/cifar10, a folder in the hub's layout, or synthetic"
    )


def cache_root() -> Path:
    """$RESNET_CIFAR_CACHE, or resnet_cifar in the user's cache folder. Raises Mistake where it cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("RESNET_CIFAR_CACHE") or Path(home) / "resnet_cifar")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"the cache folder {root} cannot be made ({error.strerror}): set RESNET_CIFAR_CACHE") from None
    return root

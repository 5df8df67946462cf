"""Where decoded data sets are cached."""

from __future__ import annotations

import os
from pathlib import Path

from resnet_cifar.config.errors import UserError


def cache_root() -> Path:
    """$RESNET_CIFAR_CACHE, or resnet_cifar in the user's cache folder; created if missing. Raises UserError."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("RESNET_CIFAR_CACHE") or Path(home) / "resnet_cifar")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {root} cannot be created ({error.strerror}): set RESNET_CIFAR_CACHE"
        ) from None
    return root

"""Decodes an image of any mode and size to RGB."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow opens 16-bit PGM files in mode I


class UndecodableImage(ValueError):
    """An image that cannot be decoded, and why."""


def to_rgb(image: Any, side: int = 0) -> np.ndarray:
    """An image as uint8 [height, width, 3] or, unless `side` is 0, [side, side, 3]. Raises UndecodableImage.

    `image`: a path, an image of `datasets` ({"bytes": ..., "path": ...}), or an array uint8 or uint16 [h, w] or
    [h, w, c]. EXIF orientation is applied, transparency is placed on white, 16-bit values are scaled by their whole
    range, and the first of several frames is used. `side` resizes as usual for evaluation on ImageNet: the shorter side
    is resized (bicubic) and the center is cropped.
    """
    if isinstance(image, np.ndarray):
        decoded = Image.fromarray(to_uint8(image.squeeze(-1) if image.shape[2:] == (1,) else image))
    else:
        decoded = _open(image)
    try:
        decoded = _convert(decoded)
        if side and decoded.size != (side, side):
            decoded = ImageOps.fit(decoded, (side, side), Image.Resampling.BICUBIC)
    except (OSError, ValueError) as error:  # a mode that Pillow does not convert
        raise UndecodableImage(str(error)) from None
    return np.array(decoded)  # a copy: PIL's view is read-only


def source_file(image: Any) -> str:
    """The file that an image is read from, or "" if unknown."""
    path = image.get("path") if isinstance(image, dict) else image if isinstance(image, str | Path) else None
    return str(path or "")


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Pixel values of uint8, or of 16 bits scaled by their range (65535 becomes 255), as uint8."""
    return values if values.dtype == np.uint8 else ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _open(image: Any) -> Image.Image:
    if isinstance(image, dict):
        image = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
    try:
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened)  # decodes
    except Exception as error:  # Pillow raises nearly everything for broken files
        raise UndecodableImage(f"{type(error).__name__}: {error}") from None


def _convert(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UndecodableImage("its values exceed 16 bits")
        image = Image.fromarray(to_uint8(values))
    if image.mode == "F":
        raise UndecodableImage("its values are floating-point numbers, whose range is unknown")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")

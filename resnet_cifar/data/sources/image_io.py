"""One picture of any mode and size -> RGB bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # 16 bits a pixel; Pillow opens PGMs of 16 bits as 32


class Unreadable(ValueError):
    """A picture that cannot be shown, and why."""


def rgb(picture: Any, side: int = 0) -> np.ndarray:
    """A picture as uint8 [height, width, 3] or, where `side` is not 0, [side, side, 3]. Raises Unreadable.

    `picture`: a path, what `datasets` holds ({"bytes": ..., "path": ...}), or an array uint8 or uint16 [h, w] or
    [h, w, c]. It is turned as its EXIF says; what is transparent lies on white; 16 bits are scaled by their whole
    range; of several frames the first is taken. To `side` as in the usual evaluation on ImageNet: the shortest side
    is resized (bicubic), and the centre cut out.
    """
    if isinstance(picture, np.ndarray):
        image = Image.fromarray(eight_bits(picture.squeeze(-1) if picture.shape[2:] == (1,) else picture))
    else:
        image = _opened(picture)
    try:
        image = _plain(image)
        if side and image.size != (side, side):
            image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    except (OSError, ValueError) as error:  # a mode that Pillow does not convert
        raise Unreadable(str(error)) from None
    return np.array(image)  # of its own: PIL's view may not be written to


def file(picture: Any) -> str:
    """The file that a picture was read from, or nothing where that is not known."""
    path = picture.get("path") if isinstance(picture, dict) else picture if isinstance(picture, str | Path) else None
    return str(path or "")


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Pixel values of uint8, or of 16 bits scaled by their range (65535 becomes 255), as uint8."""
    return values if values.dtype == np.uint8 else ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _opened(picture: Any) -> Image.Image:
    if isinstance(picture, dict):
        picture = io.BytesIO(picture["bytes"]) if picture["bytes"] is not None else picture["path"]
    try:
        with Image.open(picture) as image:
            return ImageOps.exif_transpose(image)  # this decodes
    except Exception as error:  # Pillow raises nearly everything where a file is broken
        raise Unreadable(f"{type(error).__name__}: {error}") from None


def _plain(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable("its values are beyond 16 bits")
        image = Image.fromarray(eight_bits(values))
    if image.mode == "F":
        raise Unreadable("its values are floating-point numbers, which have no range")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), shown)
    return image.convert("RGB")

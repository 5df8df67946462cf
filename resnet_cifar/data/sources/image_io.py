"""Decodes an image of any mode and size to RGB.

The source of `decode`, `cover`, `crop_center` and `fit` is part of model cards: they use nothing but NumPy and Pillow.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

try:
    from pillow_heif import register_heif_opener
except ImportError:
    READS_HEIC = False
else:
    register_heif_opener()
    READS_HEIC = True

Image.MAX_IMAGE_PIXELS = 2**28  # Pillow warns of more, and refuses twice as many: phones take 200 megapixels
HEIC = (".heic", ".heif")
HEIC_FIX = "needs `pip install pillow-heif`"
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
WHOLE_RANGE = (0, 65535)
BORDER = (124, 116, 104)  # the mean of ImageNet, which most models normalize to 0


class UndecodableImage(ValueError):
    """An image that cannot be decoded, and why."""


class TooManyPixels(UndecodableImage):
    """An image that would be too large once decoded."""


class DeepImage(Exception):
    """An image with more than 8 bits per value: which values are black and white has to be known first."""


@dataclass(frozen=True)
class Decoding:
    """How the images of a data set are decoded.

    `size`: (height, width) that they are resized to cover, and center-cropped to; None: each keeps its own. With `mode`
    "pad" they are resized to fit, and centered on a background of the color BORDER.
    `value_range`: the values of images with more than 8 bits that become 0 and 255; None: 0 and 65535, which
    floating-point images do not have.
    """

    size: tuple[int, int] | None = None
    value_range: tuple[float, float] | None = None
    mode: str = "crop"


AS_IS = Decoding()


@dataclass(frozen=True)
class Limits:
    """Which image files are decoded: those of `formats` (Pillow's names; None: of any) of up to `pixels` (None: any).

    Both are checked on a file's header, before pixels are decoded.
    """

    formats: tuple[str, ...] | None = None
    pixels: int | None = None


NO_LIMITS = Limits()


def to_rgb(image: Any, how: Decoding = AS_IS, allow_deep: bool = True, limits: Limits = NO_LIMITS) -> np.ndarray:
    """An image as uint8 [height, width, 3]. Raises UndecodableImage; DeepImage unless `allow_deep`.

    `image`: a path, an image of `datasets` ({"bytes": ..., "path": ...}), or an array uint8 or uint16 [h, w] or
    [h, w, c]. The first of several frames is used. See `decode`, `cover` and `fit`.
    """
    black_white = how.value_range or WHOLE_RANGE
    with _opened(image, limits) as opened:
        if not allow_deep and _is_deep(opened):
            raise DeepImage
        picture = _color_to_uint8(opened, *black_white) if isinstance(opened, np.ndarray) else opened
        _check_values(picture, how.value_range)
        rgb = decode(picture, *black_white)
        if how.size:
            rgb = fit(rgb, *how.size, BORDER) if how.mode == "pad" else cover(rgb, *how.size)
        return np.array(rgb)  # a copy: PIL's view is read-only


def decode(image: Image.Image, black: float = 0, white: float = 65535) -> Image.Image:
    """RGB of an image of any mode: turned as EXIF says, on white where it is transparent.

    With more than 8 bits per value, `black` becomes 0 and `white` 255; values outside are clipped.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # I;16, I, F
        values = (np.asarray(image, np.float64) - black) * (255 / (white - black))
        image = Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes (bicubic) so that the image just covers height x width, and crops the center.

    For squares the same pixels as torchvision's `Resize(side)` and `CenterCrop(side)`, hence as timm's transform.
    """
    image = crop_center(image, min(image.height, 64 * image.width), min(image.width, 64 * image.height))
    if image.width * height <= image.height * width:
        wide, high = width, width * image.height // image.width
    else:
        wide, high = height * image.width // image.height, height
    return crop_center(image.resize((wide, high), Image.Resampling.BICUBIC), height, width)


def crop_center(image: Image.Image, height: int, width: int) -> Image.Image:
    """The center of an image, height x width pixels."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def fit(image: Image.Image, height: int, width: int, border: tuple[int, int, int]) -> Image.Image:
    """Resizes (bicubic) so that the image just fits into height x width, and centers it there on the color `border`.

    The same pixels as timm's transform with crop_mode "border", whose color is the mean that it subtracts.
    """
    ratio = max(image.height / height, image.width / width)
    wide, high = max(round(image.width / ratio), 1), max(round(image.height / ratio), 1)
    padded = Image.new("RGB", (width, height), border)
    padded.paste(image.resize((wide, high), Image.Resampling.BICUBIC), ((width - wide) // 2, (height - high) // 2))
    return padded


def deep_values(image: Any) -> np.ndarray | None:
    """The values of an image with more than 8 bits each, without alpha; None for others. Raises UndecodableImage.

    Pillow reads the upper 8 of 16 bits per color only; these are scaled to 0..65535.
    """
    with _opened(image) as opened:
        if not _is_deep(opened):
            return None
        if isinstance(opened, np.ndarray):
            return opened[..., : 1 if opened.shape[2] < 3 else 3]
        if _is_deep_color(opened):
            return np.asarray(opened.convert("RGB"), np.uint16) * 257
        _check_values(opened, WHOLE_RANGE)
        return np.asarray(opened)


def is_heic(image: Any) -> bool:
    """Whether an encoded image is in Apple's HEIC format, which Pillow reads with the package pillow-heif."""
    with contextlib.suppress(OSError, TypeError):
        stored = image["bytes"] if isinstance(image, dict) else None
        with io.BytesIO(stored) if stored is not None else Path(source_file(image)).open("rb") as file:
            head = file.read(12)
        return head[4:8] == b"ftyp" and head[8:] in _HEIC_BRANDS
    return False


def unreadable_reason(image: Any) -> str:
    """Why an image that cannot be decoded is not, in words for its owner."""
    if is_heic(image) and not READS_HEIC:
        return f"a HEIC image ({HEIC_FIX})"
    return "it cannot be read as an image"


def source_file(image: Any) -> str:
    """The file that an image is read from, or "" if unknown."""
    path = image.get("path") if isinstance(image, dict) else image if isinstance(image, str | Path) else None
    return str(path or "")


@contextlib.contextmanager
def _opened(image: Any, limits: Limits = NO_LIMITS) -> Iterator[Image.Image | np.ndarray]:
    """The image, not decoded yet; an array where Pillow has no mode for it: uint16 [h, w, 2 to 4].

    Raises UndecodableImage for what goes wrong within the context too: Pillow raises nearly everything for broken
    files, some of it while it decodes.
    """
    try:
        if isinstance(image, np.ndarray):
            array = image.squeeze(-1) if image.shape[2:] == (1,) else image
            yield array if array.ndim == 3 and array.dtype != np.uint8 else Image.fromarray(array)
            return
        if isinstance(image, dict):
            image = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
        with Image.open(image, formats=limits.formats) as opened:
            if limits.pixels is not None and opened.width * opened.height > limits.pixels:
                raise TooManyPixels(f"{opened.width} x {opened.height} pixels")
            yield opened
    except (UndecodableImage, DeepImage):
        raise
    except Image.DecompressionBombError:  # its header says so
        raise TooManyPixels(f"over {2 * Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:
        raise UndecodableImage(f"{type(error).__name__}: {error}") from None


def _is_deep(opened: Image.Image | np.ndarray) -> bool:
    """Whether an image that is not decoded yet has more than 8 bits per value."""
    return isinstance(opened, np.ndarray) or opened.mode[0] in "IF" or _is_deep_color(opened)


def _is_deep_color(opened: Image.Image) -> bool:
    """Whether Pillow is about to drop the lower half of 16 bits per color."""
    arguments = [tile[3] for tile in getattr(opened, "tile", ())]
    raw_modes = (each[0] if isinstance(each, tuple) and each else each for each in arguments)
    return opened.mode[0] not in "IF" and any(";16" in str(mode) for mode in raw_modes)


def _check_values(opened: Image.Image, value_range: tuple[float, float] | None) -> None:
    """Raises UndecodableImage if values cannot be scaled; decodes images with more than 8 bits per value."""
    if _is_deep_color(opened) and value_range not in (None, WHOLE_RANGE):
        raise UndecodableImage("it has 16 bits per color, of which Pillow reads the upper 8: convert it to 8 bits")
    if opened.mode == "F" and value_range is None:
        raise UndecodableImage("its values are floating-point numbers, whose range is unknown")
    if opened.mode in ("I", "F"):
        values = np.asarray(opened)
        if not np.isfinite(values).all():
            raise UndecodableImage("some of its values are not finite")
        if value_range is None and (values.min() < 0 or values.max() > WHOLE_RANGE[1]):
            raise UndecodableImage("its values exceed 16 bits")


def _color_to_uint8(values: np.ndarray, black: float, white: float) -> Image.Image:
    """uint16 [h, w, 2 to 4] with black and white scaled to 0 and 255, and alpha by all its 16 bits."""
    alpha = values.shape[2] in (2, 4)
    low, high = np.full((2, values.shape[2]), [[black], [white]], dtype=np.float64)
    if alpha:
        low[-1], high[-1] = WHOLE_RANGE
    return Image.fromarray(((values - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8))

"""Sizes, modes, formats and bytes of the images in their source, before decoding.

Only headers are read, which is fast; whether an image can be decoded is checked by the data package.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.base import Split

MOST = 100_000  # images of a split whose headers are read
_CHUNK = 1024
_ENDS = 5  # largest and smallest files that are named
_TURNED, _ORIENTATION = range(2, 9), 0x0112  # EXIF


@dataclass(frozen=True)
class Header:
    """An image header. `nbytes`: stored size, 0 for an array element; `size`: (width, height), (0, 0) if unreadable;
    `turned`: whether EXIF asks to rotate or mirror it.
    """

    index: int
    file: str
    nbytes: int
    format: str = "unreadable"
    mode: str = "-"
    size: tuple[int, int] = (0, 0)
    turned: bool = False


@dataclass
class Originals:
    """Counts over the headers of a split, and its largest and smallest files (none for arrays)."""

    name: str
    pictures: int
    read: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    formats: Counter[tuple[str, str]] = field(default_factory=Counter)
    turned: int = 0
    nbytes: int = 0
    largest: list[Header] = field(default_factory=list)
    smallest: list[Header] = field(default_factory=list)


def survey(split: Split) -> Originals:
    """Reads the headers of a split's images, or of evenly spaced ones if there are more than MOST."""
    found = Originals(split.name, len(split.images))
    for header in _headers(split):
        found.read += 1
        found.sizes[header.size] += header.size != (0, 0)
        found.formats[header.format, header.mode] += 1
        found.turned += header.turned
        found.nbytes += header.nbytes
        if header.nbytes:
            found.largest = sorted([*found.largest, header], key=lambda one: -one.nbytes)[:_ENDS]
            found.smallest = sorted([*found.smallest, header], key=lambda one: one.nbytes)[:_ENDS]
    found.sizes = +found.sizes
    return found


def _headers(split: Split) -> Iterator[Header]:
    step = -(-len(split.images) // MOST)
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(split.images), _CHUNK * step):
            part = split.images[start : start + _CHUNK * step][::step]
            yield from threads.map(header, range(start, start + len(part) * step, step), part)


def header(index: int, picture: Any) -> Header:
    """The header of an image (see `image_io.to_rgb`) without decoding it."""
    if isinstance(picture, np.ndarray):
        return _of_array(index, picture)
    stored = picture["bytes"] if isinstance(picture, dict) else None
    file = image_io.source_file(picture)
    try:
        nbytes = len(stored) if stored is not None else Path(file).stat().st_size
        with Image.open(io.BytesIO(stored) if stored is not None else file) as image:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            return Header(index, file, nbytes, image.format or "-", _mode(image), image.size, turned)
    except Exception:  # Pillow raises nearly any exception for a broken file
        return Header(index, file, len(stored) if stored is not None else 0)


def _of_array(index: int, picture: np.ndarray) -> Header:
    channels = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[picture.shape[2] if picture.ndim == 3 else 1]
    mode = channels if picture.dtype == np.uint8 else f"{channels}, 16 bits"
    return Header(index, "", 0, "array", mode, (picture.shape[1], picture.shape[0]))


def _mode(image: Image.Image) -> str:
    """Pillow's mode, and whether a mode without alpha channel has transparent pixels."""
    return f"{image.mode}, transparent" if "transparency" in image.info else image.mode

"""An embedded ten-class set of 32x32 RGB images, computed by formula, so that a demo needs no download.

Five classes are single figures (disc, ring, square, triangle, cross), five are textures that fill
the image (horizontal, vertical and diagonal stripes, checkerboard, dots). Position, size, phase and
tilt vary; so do both colors, the shading, the pixel noise and a small spot that belongs to no class.

Figure and ground are dark on light or light on dark at random, so every class has nearly the same
gray mean image: a linear model finds no template, while a few local edges tell the classes apart.
A horizontal flip keeps every class.

The bytes are the same on every platform and numpy version: the randomness is the raw Philox stream,
and the drawing uses only operations that IEEE 754 rounds exactly (no sine, no sums).
"""

from collections.abc import Callable

import numpy as np

from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import SourceData, Split

Array = np.ndarray
Field = Callable[[Array, Array, Array], Array]

SIZES = {"train": 10_000, "test": 2_000}

_SIDE = 32
_KEYS = {"train": 1, "test": 2}
_NOISE_COUNTER = 1 << 128  # far beyond the part of the stream that the parameters use
_PARAMETERS = 19  # uniforms per image, besides the noise
_BLOCK = 500  # images drawn at a time, to bound memory; a multiple of ten, so that labels alternate across blocks


def draw(split: str, count: int | None = None) -> tuple[Array, Array]:
    """The first `count` images of a split (all by default) and their labels.

    Images are uint8 [n, 32, 32, 3], labels int64 [n]. The classes alternate, so a prefix is
    balanced too, and image i does not depend on `count`.
    """
    if split not in SIZES:
        raise ValueError(f"unknown split {split!r}, expected one of {sorted(SIZES)}")
    total = SIZES[split] if count is None else count
    if not 0 < total <= SIZES[split]:
        raise ValueError(f"count must be in 1..{SIZES[split]} for {split!r}, got {count}")
    parameters = np.random.Philox(key=_KEYS[split], counter=0)
    noise = np.random.Philox(key=_KEYS[split], counter=_NOISE_COUNTER)
    images = np.empty((total, _SIDE, _SIDE, 3), np.uint8)
    for start in range(0, total, _BLOCK):
        n = min(_BLOCK, total - start)
        p = _uniform(parameters, n, _PARAMETERS).T[:, :, None, None]
        images[start : start + n] = _paint(p, _uniform(noise, n, _SIDE, _SIDE))
    return images, np.arange(total, dtype=np.int64) % len(CLASS_NAMES)


def _uniform(source: np.random.Philox, *shape: int) -> Array:
    """float32 in [0, 1]; not by np.random.Generator, whose distributions may change between versions."""
    raw = source.random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)) * 2.0**-53).astype(np.float32).reshape(shape)


def _paint(p: Array, noise: Array) -> Array:
    """Images for parameters [_PARAMETERS, n, 1, 1] and noise [n, 32, 32], the classes alternating."""
    pose, dark, light, spot_color, others = np.split(p, (5, 8, 11, 14))
    polarity, slope_x, slope_y, spot_x, spot_y = others
    axis = np.arange(_SIDE, dtype=np.float32) - (_SIDE - 1) / 2
    y, x = axis[:, None], axis[None, :]

    cover = np.empty_like(noise)
    for label, shape in enumerate(_SHAPES.values()):
        own = slice(label, None, len(_SHAPES))
        cover[own] = _coverage(shape(pose[:, own], y, x))
    spot = _coverage(np.maximum(abs(x - 28 * (spot_x - 0.5)), abs(y - 28 * (spot_y - 0.5))) - 1.5)
    shade = 2 * ((slope_x - 0.5) * x + (slope_y - 0.5) * y) + 56 * (noise - 0.5)

    dark, light = 115 * dark, 255 - 115 * light
    ink, ground = np.where(polarity < 0.5, (dark, light), (light, dark))
    images = np.empty((*noise.shape, 3), np.uint8)
    for channel in range(3):
        value = ground[channel] + (ink[channel] - ground[channel]) * cover
        value += (255 * spot_color[channel] - value) * spot
        images[..., channel] = np.clip(value + shade, 0, 255)
    return images


def _coverage(distance: Array) -> Array:
    """Coverage of each pixel by a shape, from the signed distance to its edge (negative inside)."""
    return np.clip(0.5 - distance, 0, 1)


def _rotate(y: Array, x: Array, t: Array) -> tuple[Array, Array]:
    """Coordinates rotated by the angle 2 atan(t): rational in t, so that no sine is needed."""
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    return cos * y - sin * x, cos * x + sin * y


def _wave(phase: Array) -> Array:
    """Triangle wave of period 1 between -1/4 and 1/4."""
    return abs(phase - np.floor(phase) - 0.5) - 0.25


def _length(v: Array, u: Array) -> Array:
    return np.sqrt(v * v + u * u)


def _figure(distance: Field) -> Field:
    """One figure of a random radius near the center; `distance` takes (down, right, radius)."""

    def shape(pose: Array, y: Array, x: Array) -> Array:
        down, right, size, tilt, _ = pose
        v, u = _rotate(y - 10 * (down - 0.5), x - 10 * (right - 0.5), 0.16 * (tilt - 0.5))
        return distance(v, u, 8 + 4 * size)

    return shape


def _texture(distance: Callable[[Array, Array], Array], slant: float = 0.0) -> Field:
    """A pattern of a random period; `distance`, in periods, takes the two waves of its grid."""

    def shape(pose: Array, y: Array, x: Array) -> Array:
        down, right, size, tilt, side = pose
        v, u = _rotate(y, x, np.copysign(slant, side - 0.5) + 0.16 * (tilt - 0.5))
        period = 6 + 5 * size
        return period * distance(_wave(v / period + down), _wave(u / period + right))

    return shape


def _triangle(v: Array, u: Array, r: Array) -> Array:
    return np.maximum(v - 0.7 * r, 0.866 * abs(u) - 0.5 * v - 0.6 * r)


def _cross(v: Array, u: Array, r: Array) -> Array:
    long, short = np.maximum(abs(v), abs(u)), np.minimum(abs(v), abs(u))
    return np.maximum(long - r, short - 0.3 * r)


_SHAPES: dict[str, Field] = {
    "disc": _figure(lambda v, u, r: _length(v, u) - r),
    "ring": _figure(lambda v, u, r: abs(_length(v, u) - 0.8 * r) - 0.2 * r),
    "square": _figure(lambda v, u, r: np.maximum(abs(v), abs(u)) - 0.85 * r),
    "triangle": _figure(_triangle),
    "cross": _figure(_cross),
    "horizontal stripes": _texture(lambda v, u: v),
    "vertical stripes": _texture(lambda v, u: u),
    # 45 degrees to either side (the argument of _rotate), so that a flip keeps the class.
    "diagonal stripes": _texture(lambda v, u: v, slant=0.41421356),
    "checkerboard": _texture(lambda v, u: np.maximum(np.minimum(v, u), -np.maximum(v, u))),
    "dots": _texture(lambda v, u: _length(v + 0.25, u + 0.25) - 0.3),
}
CLASS_NAMES: tuple[str, ...] = tuple(_SHAPES)


FIELDS = ()


def identity(_data: Data) -> str:
    """The version of the images: must change if any byte changes."""
    return "synthetic 1"


def read(_data: Data) -> SourceData:
    """Both splits."""
    return SourceData(*(Split(name, *draw(name)) for name in SIZES), CLASS_NAMES)

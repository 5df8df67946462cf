"""TrivialAugment (Mueller & Hutter 2021), the wide space: one random operation per image, at one of 31 magnitudes; and
RandAugment (Cubuk et al. 2020): two random operations, with smaller ranges, at a given magnitude.

All images of a batch go through the same three stages: an affine matrix, a lookup table of 256 levels, and a blend;
stages that are not part of an image's operation get neutral parameters. Equal to torchvision's `TrivialAugmentWide` and
`RandAugment` on CPU tensors (nearest, black fill), including their truncations, and the same on every device: sines are
computed on the host; the rest is integer arithmetic, or rounded after each operation.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from resnet_cifar.data.color import add_scaled, gray_levels, mean_level

OPERATIONS = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
MAGNITUDES = 31
_AUTOCONTRAST, _EQUALIZE, _COLOR = (OPERATIONS.index(name) for name in ("AutoContrast", "Equalize", "Color"))
_LEVELS = 256


class _Ranges(NamedTuple):
    """The largest magnitudes of a space: shear, shift (pixels, or shares of the width and height), angle (degrees),
    change of color, contrast, brightness and sharpness, and removed bits.
    """

    shear: float
    shift: float
    relative_shift: bool
    angle: float
    change: float
    bits: int


_TRIVIAL = _Ranges(shear=0.99, shift=32.0, relative_shift=False, angle=135.0, change=0.99, bits=6)
_RAND = _Ranges(shear=0.3, shift=150.0 / 331.0, relative_shift=True, angle=30.0, change=0.9, bits=4)


class _Settings(NamedTuple):
    """Parameters of one operation and magnitude, or tensors [n], one value per image; the defaults change nothing."""

    # The pixel at (x, y) from the center comes from (xx x + xy y + x0, yx x + yy y + y0).
    xx: float | Tensor = 1.0
    xy: float | Tensor = 0.0
    x0: float | Tensor = 0.0
    yx: float | Tensor = 0.0
    yy: float | Tensor = 1.0
    y0: float | Tensor = 0.0
    # A level times `level`, plus the mean gray of the image times `mean`; inverted from `invert` on; masked by `mask`.
    level: float | Tensor = 1.0
    mean: float | Tensor = 0.0
    invert: float | Tensor = _LEVELS
    mask: float | Tensor = _LEVELS - 1
    # A pixel times `pixel`, plus another value (its gray, or the difference to its neighborhood) times `other`.
    pixel: float | Tensor = 1.0
    other: float | Tensor = 0.0


def trivial_augment(images: Tensor, u: Tensor) -> Tensor:
    """Each image's random operation. images: uint8 [n, height, width, 3]; u: [n, 3]: operation, magnitude, sign."""
    return _apply(images, _TRIVIAL, u[:, 0], (u[:, 1] * MAGNITUDES).long(), u[:, 2])


def rand_augment(images: Tensor, u: Tensor, magnitude: int) -> Tensor:
    """Two random operations per image, both of the same magnitude, 0 to 30. u: [n, 4]: operation and sign, twice."""
    for kind, sign in (u[:, 0:2].unbind(1), u[:, 2:4].unbind(1)):
        images = _apply(images, _RAND, kind, magnitude, sign)
    return images


def _apply(images: Tensor, ranges: _Ranges, kind: Tensor, number: Tensor | int, sign: Tensor) -> Tensor:
    """One operation per image. `kind`, `sign`: uniforms [n]; `number`: of the magnitude."""
    operation = (kind * len(OPERATIONS)).long()
    row = (operation * MAGNITUDES + number) * 2 + (sign < 0.5)
    settings = _Settings(*_table(ranges, *images.shape[1:3], images.device)[row].unbind(1))
    images = _move(images, settings)
    gray = gray_levels(images)
    images = _map_levels(images, gray, settings, operation)
    return _blend(images, gray, settings, operation)


@lru_cache(maxsize=8)
def _table(ranges: _Ranges, height: int, width: int, device: torch.device) -> Tensor:
    """The settings of every operation, magnitude and sign: float32 [14 * 31 * 2, settings]."""
    table = torch.tensor(
        [
            _settings(ranges, operation, number, sign, height, width)
            for operation in OPERATIONS
            for number in range(MAGNITUDES)
            for sign in (1, -1)
        ],
        dtype=torch.float32,
    )
    # In half image sizes, the coordinates of torchvision's grid.
    table[:, 0:3] /= width / 2
    table[:, 3:6] /= height / 2
    return table.to(device)


def _settings(ranges: _Ranges, operation: str, number: int, sign: int, height: int, width: int) -> _Settings:
    """`number`: of the magnitude, 0 to 30; `sign`: 1 or -1, for the operations that have two directions."""
    shear = sign * _magnitude(0.0, ranges.shear, number)
    units = (width, height) if ranges.relative_shift else (1, 1)
    right, down = (int(sign * _magnitude(0.0, ranges.shift * unit, number)) for unit in units)
    angle = math.radians(sign * _magnitude(0.0, ranges.angle, number))
    sine, cosine = math.sin(angle), math.cos(angle)
    change = sign * _magnitude(0.0, ranges.change, number)
    scale, rest = 1 + change, -change
    return {
        "ShearX": _Settings(xy=shear, x0=shear * height / 2),
        "ShearY": _Settings(yx=shear, y0=shear * width / 2),
        "TranslateX": _Settings(x0=-right),
        "TranslateY": _Settings(y0=-down),
        "Rotate": _Settings(xx=cosine, xy=-sine, yx=sine, yy=cosine),
        "Brightness": _Settings(level=scale),
        "Contrast": _Settings(level=scale, mean=rest),
        "Posterize": _Settings(mask=_LEVELS - 2 ** round(number / ((MAGNITUDES - 1) / ranges.bits))),
        "Solarize": _Settings(invert=255 * _magnitude(1.0, 0.0, number)),
        "Color": _Settings(pixel=scale, other=rest),
        "Sharpness": _Settings(other=rest),
    }.get(operation, _Settings())


def _magnitude(first: float, last: float, number: int) -> float:
    return torch.linspace(first, last, MAGNITUDES)[number].item()


def _move(images: Tensor, settings: _Settings) -> Tensor:
    """Applies the affine matrix with nearest-neighbor sampling; pixels from outside are black."""
    n, height, width, _ = images.shape
    xx, xy, x0, yx, yy, y0 = (entry[:, None, None] for entry in settings[:6])
    x = _centered(width, images.device)
    y = _centered(height, images.device)[:, None]
    across = _nearest(x * xx + y * xy + x0, width)
    down = _nearest(x * yx + y * yy + y0, height)
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    rows = torch.arange(n, device=images.device)[:, None, None]
    return images[rows, down.clamp(0, height - 1), across.clamp(0, width - 1)] * inside[..., None]


def _centered(side: int, device: torch.device) -> Tensor:
    return torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2


def _nearest(position: Tensor, side: int) -> Tensor:
    """From coordinates in -1..1 to pixel indices, rounded as grid_sample does."""
    return ((position + 1) * (side / 2) - 0.5).round().long()


def _map_levels(images: Tensor, gray: Tensor, settings: _Settings, operation: Tensor) -> Tensor:
    """Brightness, Contrast, Posterize, Solarize, AutoContrast and Equalize: one lookup table per channel."""
    n, channels = len(images), images.shape[3]
    levels = torch.arange(_LEVELS, dtype=torch.float32, device=images.device)
    mean = mean_level(gray)[:, 0]
    table = add_scaled(levels * settings.level[:, None], mean, settings.mean[:, None]).clamp(0, 255).to(torch.uint8)
    table = torch.where(table >= settings.invert[:, None], 255 - table, table) & settings.mask[:, None].to(torch.uint8)

    tables = torch.arange(n * channels, device=images.device).view(n, 1, 1, channels)
    places = tables * _LEVELS + images
    lowest, highest = images.amin((1, 2))[..., None], images.amax((1, 2))[..., None]
    drawn = operation[:, None, None]
    table = torch.where(drawn == _AUTOCONTRAST, _stretched(levels, lowest, highest), table[:, None])
    table = torch.where(drawn == _EQUALIZE, _equalized(levels, places, highest), table)
    return table.take(places)


def _stretched(levels: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """From `lowest` .. `highest` (uint8 [n, channels, 1]) to 0 .. 255: uint8 [n, channels, levels]."""
    flat = lowest == highest
    span = torch.where(flat, 1, (highest - lowest) * (1 / 255))
    return ((levels - torch.where(flat, 0, lowest)) / span).clamp(0, 255).to(torch.uint8)


def _equalized(levels: Tensor, places: Tensor, highest: Tensor) -> Tensor:
    """PIL's equalization, from a histogram of each channel: uint8 [n, channels, levels].

    `places`: the index of every pixel's level in the result.
    """
    n, height, width, channels = places.shape
    counts = torch.zeros(n * channels * _LEVELS, dtype=torch.int32, device=places.device)
    counts.scatter_add_(0, places.flatten(), counts.new_ones(1).expand(places.numel()))
    counts = counts.view(n, channels, _LEVELS)
    below = counts.cumsum(-1) - counts
    each = (height * width - counts.gather(-1, highest.long())) // 255  # pixels of a level; the highest is left out
    equalized = ((below + each // 2) // each.clamp(min=1)).clamp(0, 255)
    return torch.where(each == 0, levels, equalized).to(torch.uint8)


def _blend(images: Tensor, gray: Tensor, settings: _Settings, operation: Tensor) -> Tensor:
    """Color and Sharpness: blends pixels with their gray, or with their neighborhood (except at the border)."""
    pixel, other = (factor[:, None, None, None] for factor in (settings.pixel, settings.other))
    whole = images.to(torch.int16)
    center = whole[:, 1:-1, 1:-1]
    rows = whole[:, :-2] + whole[:, 1:-1] + whole[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    away = torch.zeros_like(whole)
    away[:, 1:-1, 1:-1] = (2 * (box + 4 * center) + 13) // 26 - center  # (box + 4 center) / 13, rounded
    is_color = (operation == _COLOR)[:, None, None, None]
    added = torch.where(is_color, gray[..., None], away)
    return add_scaled(images * pixel, added, other).clamp(0, 255).to(torch.uint8)

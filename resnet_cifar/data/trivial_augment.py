"""TrivialAugment (Mueller & Hutter 2021), the wide space: one operation an image, at one of 31 magnitudes.

Every image has an operation of its own, and all go the same way: pixels move through the image's matrix, grey levels
through its table of 256, and colours are blended. What an image did not draw is neutral for it. Equal to torchvision's
`TrivialAugmentWide` on CPU tensors (nearest, black where nothing is), truncations included, and the same on every
device: what has a sine in it is made on the host; the rest counts whole numbers, or is rounded one operation at a time.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

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
_LUMA = torch.tensor([0.2989, 0.587, 0.114]).tolist()  # rounded to float32


class _Settings(NamedTuple):
    """One operation at one magnitude, or tensors [n] of an image each; the defaults leave an image as it is."""

    # The pixel at (x, y) from the centre comes from (xx x + xy y + x0, yx x + yy y + y0).
    xx: float | Tensor = 1.0
    xy: float | Tensor = 0.0
    x0: float | Tensor = 0.0
    yx: float | Tensor = 0.0
    yy: float | Tensor = 1.0
    y0: float | Tensor = 0.0
    # A grey level times `level`, plus the image's mean times `mean`; inverted from `invert` on; the bits of `mask`.
    level: float | Tensor = 1.0
    mean: float | Tensor = 0.0
    invert: float | Tensor = _LEVELS
    mask: float | Tensor = _LEVELS - 1
    # A pixel times `pixel`, plus another one (its grey, or how far away its neighbourhood is) times `other`.
    pixel: float | Tensor = 1.0
    other: float | Tensor = 0.0


def trivial_augment(images: Tensor, u: Tensor) -> Tensor:
    """Each image's random operation. images: uint8 [n, height, width, 3]; u: [n, 3]: operation, magnitude, sign."""
    operation = (u[:, 0] * len(OPERATIONS)).long()
    row = (operation * MAGNITUDES + (u[:, 1] * MAGNITUDES).long()) * 2 + (u[:, 2] < 0.5)
    settings = _Settings(*_table(*images.shape[1:3], images.device)[row].unbind(1))
    images = _move(images, settings)
    grey = _grey(images)
    images = _map_levels(images, grey, settings, operation)
    return _blend(images, grey, settings, operation)


@lru_cache(maxsize=8)
def _table(height: int, width: int, device: torch.device) -> Tensor:
    """The settings of every operation, magnitude and sign: float32 [14 * 31 * 2, settings]."""
    table = torch.tensor(
        [
            _settings(operation, number, sign, height, width)
            for operation in OPERATIONS
            for number in range(MAGNITUDES)
            for sign in (1, -1)
        ],
        dtype=torch.float32,
    )
    # The matrix leads to halves of the image, where torchvision looks pixels up.
    table[:, 0:3] /= width / 2
    table[:, 3:6] /= height / 2
    return table.to(device)


def _settings(operation: str, number: int, sign: int, height: int, width: int) -> _Settings:
    """`number`: of the magnitude, 0 to 30; `sign`: 1 or -1, for the operations that have two directions."""
    strength = sign * _magnitude(0.0, 0.99, number)
    shift = int(sign * _magnitude(0.0, 32.0, number))
    angle = math.radians(sign * _magnitude(0.0, 135.0, number))
    sine, cosine = math.sin(angle), math.cos(angle)
    scale, rest = 1 + strength, -strength
    return {
        "ShearX": _Settings(xy=strength, x0=strength * height / 2),
        "ShearY": _Settings(yx=strength, y0=strength * width / 2),
        "TranslateX": _Settings(x0=-shift),
        "TranslateY": _Settings(y0=-shift),
        "Rotate": _Settings(xx=cosine, xy=-sine, yx=sine, yy=cosine),
        "Brightness": _Settings(level=scale),
        "Contrast": _Settings(level=scale, mean=rest),
        "Posterize": _Settings(mask=_LEVELS - 2 ** round(number / ((MAGNITUDES - 1) / 6))),
        "Solarize": _Settings(invert=255 * _magnitude(1.0, 0.0, number)),
        "Color": _Settings(pixel=scale, other=rest),
        "Sharpness": _Settings(other=rest),
    }.get(operation, _Settings())


def _magnitude(first: float, last: float, number: int) -> float:
    return torch.linspace(first, last, MAGNITUDES)[number].item()


def _move(images: Tensor, settings: _Settings) -> Tensor:
    """Looks each pixel up where the image's matrix says, to the nearest; black where that is outside."""
    n, height, width, _ = images.shape
    xx, xy, x0, yx, yy, y0 = (entry[:, None, None] for entry in settings[:6])
    x = _from_the_centre(width, images.device)
    y = _from_the_centre(height, images.device)[:, None]
    across = _nearest(x * xx + y * xy + x0, width)
    down = _nearest(x * yx + y * yy + y0, height)
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    rows = torch.arange(n, device=images.device)[:, None, None]
    return images[rows, down.clamp(0, height - 1), across.clamp(0, width - 1)] * inside[..., None]


def _from_the_centre(side: int, device: torch.device) -> Tensor:
    return torch.arange(side, dtype=torch.float32, device=device) - (side - 1) / 2


def _nearest(position: Tensor, side: int) -> Tensor:
    """From -1..1 over the image to the index of a pixel, as grid_sample rounds."""
    return ((position + 1) * (side / 2) - 0.5).round().long()


def _grey(images: Tensor) -> Tensor:
    """torchvision's grey, whole levels: float32 [n, height, width]."""
    red, green, blue = images.float().unbind(-1)
    return _add(_add(red * _LUMA[0], green, _LUMA[1]), blue, _LUMA[2]).floor()


def _map_levels(images: Tensor, grey: Tensor, settings: _Settings, operation: Tensor) -> Tensor:
    """Brightness, Contrast, Posterize, Solarize, AutoContrast and Equalize: a table of each channel's levels."""
    n, height, width, channels = images.shape
    levels = torch.arange(_LEVELS, dtype=torch.float32, device=images.device)
    mean = (grey.sum((1, 2), dtype=torch.float64) / (height * width)).float()
    table = _add(levels * settings.level[:, None], mean[:, None], settings.mean[:, None]).clamp(0, 255).to(torch.uint8)
    table = torch.where(table >= settings.invert[:, None], 255 - table, table) & settings.mask[:, None].to(torch.uint8)

    tables = torch.arange(n * channels, device=images.device).view(n, 1, 1, channels)
    places = tables * _LEVELS + images
    lowest, highest = images.amin((1, 2))[..., None], images.amax((1, 2))[..., None]
    drew = operation[:, None, None]
    table = torch.where(drew == _AUTOCONTRAST, _stretched(levels, lowest, highest), table[:, None])
    table = torch.where(drew == _EQUALIZE, _equalized(levels, places, highest), table)
    return table.take(places)


def _stretched(levels: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """From `lowest` .. `highest` (uint8 [n, channels, 1]) to 0 .. 255: uint8 [n, channels, levels]."""
    flat = lowest == highest
    span = torch.where(flat, 1, (highest - lowest) * (1 / 255))
    return ((levels - torch.where(flat, 0, lowest)) / span).clamp(0, 255).to(torch.uint8)


def _equalized(levels: Tensor, places: Tensor, highest: Tensor) -> Tensor:
    """PIL's equalisation, from a histogram of each channel: uint8 [n, channels, levels].

    `places`: for each pixel the place of its level in that result.
    """
    n, height, width, channels = places.shape
    counts = torch.zeros(n * channels * _LEVELS, dtype=torch.int32, device=places.device)
    counts.scatter_add_(0, places.flatten(), counts.new_ones(1).expand(places.numel()))
    counts = counts.view(n, channels, _LEVELS)
    below = counts.cumsum(-1) - counts
    each = (height * width - counts.gather(-1, highest.long())) // 255  # pixels of a level; the highest is left out
    equalized = ((below + each // 2) // each.clamp(min=1)).clamp(0, 255)
    return torch.where(each == 0, levels, equalized).to(torch.uint8)


def _blend(images: Tensor, grey: Tensor, settings: _Settings, operation: Tensor) -> Tensor:
    """Color and Sharpness: each pixel with its grey, or with its neighbourhood (which pixels at the border lack)."""
    pixel, other = (factor[:, None, None, None] for factor in (settings.pixel, settings.other))
    whole = images.to(torch.int16)
    centre = whole[:, 1:-1, 1:-1]
    rows = whole[:, :-2] + whole[:, 1:-1] + whole[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    away = torch.zeros_like(whole)
    away[:, 1:-1, 1:-1] = (2 * (box + 4 * centre) + 13) // 26 - centre  # (box + 4 centre) / 13, rounded
    is_color = (operation == _COLOR)[:, None, None, None]
    added = torch.where(is_color, grey[..., None], away)
    return _add(images * pixel, added, other).clamp(0, 255).to(torch.uint8)


def _add(base: Tensor, added: Tensor, factor: Tensor | float) -> Tensor:
    """base + added * factor in float32, rounded once: what torch's `add(alpha=...)` does with a fused multiply-add."""
    return (added.double() * factor + base).float()

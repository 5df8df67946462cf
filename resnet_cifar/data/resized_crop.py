"""Random resized crops (Szegedy et al. 2015), as torchvision's RandomResizedCrop, for a whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Range = tuple[float, float]
ASPECTS = 4 / 3, 3 / 4  # of random resized crops


def random_boxes(u: Tensor, areas: Range, aspects: Range, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Boxes (top, left, height, width), int64 [n, 4], inside images of the given size, or int64 [n] of each.

    Their share of the image is uniform in `areas`, their height over width log-uniform in `aspects`. One attempt,
    clamped to the image (torchvision makes ten). u: [n, 4]: area, aspect, down, right.
    """
    area = height * width * (areas[0] + u[:, 0] * (areas[1] - areas[0]))
    low, high = torch.log(torch.tensor(aspects, dtype=u.dtype)).tolist()
    aspect = torch.exp(low + u[:, 1] * (high - low))
    tall = (area * aspect).sqrt().round().clamp(min=1).clamp(max=height).long()
    wide = (area / aspect).sqrt().round().clamp(min=1).clamp(max=width).long()
    top = (u[:, 2] * (height - tall + 1)).long()
    left = (u[:, 3] * (width - wide + 1)).long()
    return torch.stack([top, left, tall, wide], dim=1)


def content_boxes(images: Tensor, border: Tensor) -> Tensor:
    """The smallest box (top, left, height, width) around the pixels that are not of the color `border`: int64 [n, 4].

    The whole image if all are. images: uint8 [n, height, width, 3]; border: uint8 [3].
    """
    inside = (images != border).any(3)
    edges = []
    for lines in (inside.any(2).byte(), inside.any(1).byte()):
        first = lines.argmax(1)
        edges.append((first, lines.shape[1] - lines.flip(1).argmax(1) - first))
    (top, tall), (left, wide) = edges
    return torch.stack([top, left, tall, wide], dim=1)


def crop_and_resize(pixels: Tensor, boxes: Tensor, size: int, interpolation: str) -> Tensor:
    """Resizes a box of each image: [n, height, width, 3] -> [n, size, size, 3], floating-point.

    Equal to torchvision's `resized_crop` with antialiasing. `boxes`: as from `random_boxes`.
    """
    top, left, tall, wide = boxes.unbind(1)
    across = _resample(pixels.transpose(1, 2), left, wide, size, interpolation).transpose(1, 2)
    return _resample(across, top, tall, size, interpolation)


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as in Pillow and torch's antialiased bicubic interpolation."""
    x, a = distance.abs(), -0.5
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


_KERNELS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {"bilinear": (1, _linear), "bicubic": (2, cubic)}


def _resample(pixels: Tensor, start: Tensor, length: Tensor, size: int, interpolation: str) -> Tensor:
    """Resamples `length` rows from `start` (both int64 [n]) of each image: [n, side, ..., 3] -> [n, size, ..., 3].

    The number of rows in a sum depends on the sizes alone, so nothing waits for the device.
    """
    side = pixels.shape[1]
    outputs = torch.arange(size, device=pixels.device)
    scale = (length / size)[:, None].double()
    if interpolation == "nearest":
        source = (outputs * scale.float()).long()  # in float32, like torch, whose choice of pixels it is
        places = (start[:, None] + torch.minimum(source, length[:, None] - 1)).unsqueeze(2)
        weights = torch.ones_like(places, dtype=pixels.dtype)
    else:
        radius, kernel = _KERNELS[interpolation]
        stretch = scale.clamp(min=1)
        center = start[:, None] + (outputs + 0.5) * scale
        taps = torch.arange(2 * math.ceil(radius * max(side / size, 1)) + 1, device=pixels.device)
        places = (center - radius * stretch + 0.5).floor().long()[..., None] + taps
        inside = (places >= start[:, None, None]) & (places < (start + length)[:, None, None])
        weights = kernel((places + 0.5 - center[..., None]) / stretch[..., None]) * inside
        weights = (weights / weights.sum(2, keepdim=True)).to(pixels.dtype)
        places = places.clamp(0, side - 1)
    return weighted_rows(pixels, places, weights)


def weighted_rows(pixels: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of each image: [n, side, ...] -> [n, size, ...].

    `places` (int64) and `weights`: [n, size, taps], or [size, taps] for all images. An embedding bag writes the large
    tensor once, by one kernel, and an image's result does not depend on its batch.
    """
    n, side = pixels.shape[:2]
    size, taps = places.shape[-2:]
    rows = torch.arange(0, n * side, side, device=pixels.device)[:, None, None] + places
    sums = F.embedding_bag(
        rows.view(n * size, taps),
        pixels.reshape(n * side, -1),
        mode="sum",
        per_sample_weights=weights.expand(n, size, taps).reshape(n * size, taps),
    )
    return sums.view(n, size, *pixels.shape[2:])

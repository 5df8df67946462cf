"""Augmentations: pure functions of a batch and its random numbers, vectorized, the same on every device.

Images are uint8 [n, height, width, 3] until `to_input`; `u` holds uniforms in [0, 1), float64, one row per image. None
of these functions depends on ranks, steps or seeds, and none indexes with a boolean mask (which would synchronize with
the device). The order is: crop, flip, AUGMENTATIONS in their order, all at the stored size; normalize, resize (a random
box of each image with `augment.random_resized_crop`), mix.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_cifar.data.color import color_jitter, grayscale
from resnet_cifar.data.resized_crop import crop_and_resize, random_boxes, weighted_rows
from resnet_cifar.data.trivial_augment import rand_augment, trivial_augment


def crop_and_flip(images: Tensor, u: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Random crop of the reflect-padded image, then a horizontal flip where `flips` is 1.

    Equal to torchvision's `pad(padding_mode="reflect")`, `crop` and `hflip`, without the padded copy: each output
    pixel is read from its source. u: [n, 2] (down, right); flips: integer [n].
    """
    n, height, width, _ = images.shape
    assert padding < min(height, width), "reflection needs a side longer than the padding"
    shift = (u * (2 * padding + 1)).long() - padding
    down = torch.arange(height, device=images.device) + shift[:, :1]
    across = torch.arange(width, device=images.device)
    across = torch.where(flips[:, None] == 1, width - 1 - across, across) + shift[:, 1:]
    rows = torch.arange(n, device=images.device)[:, None, None]
    return images[rows, _reflect(down, height)[:, :, None], _reflect(across, width)[:, None, :]]


def cutout(images: Tensor, u: Tensor, side: int, fill: Tensor) -> Tensor:
    """Fills a square around a random center, clipped at the border (DeVries & Taylor 2017). u: [n, 2]; fill: [3]."""
    height, width = images.shape[1:3]
    top = (u[:, 0] * height).long() - side // 2
    left = (u[:, 1] * width).long() - side // 2
    return _fill_boxes(images, top, left, torch.full_like(top, side), torch.full_like(left, side), fill)


def random_erasing(images: Tensor, u: Tensor, probability: float, fill: Tensor) -> Tensor:
    """Random erasing (Zhong et al. 2017) with torchvision's ranges: area 2 to 33 %, aspect 0.3 to 3.3, log-uniform.

    One attempt, clamped to the image (torchvision makes ten). u: [n, 5]: probability, area, aspect, down, right.
    """
    top, left, tall, wide = random_boxes(u[:, 1:], (0.02, 0.33), (0.3, 3.3), *images.shape[1:3]).unbind(1)
    tall = torch.where(u[:, 0] < probability, tall, 0)
    return _fill_boxes(images, top, left, tall, wide, fill)


class Augmentation(NamedTuple):
    """An augmentation of single images: the field of `augment` that enables it, and its columns of random numbers.

    apply(images, u, value of the field, fill color uint8 [3]) -> images, all uint8 [n, height, width, 3].
    """

    field: str
    columns: slice
    apply: Callable[[Tensor, Tensor, Any, Tensor], Tensor]


# Applied in this order. A new one takes the next free columns of 32 (0 to 29 are taken), so that others keep theirs.
AUGMENTATIONS = (
    Augmentation("trivial_augment", slice(14, 17), lambda images, u, value, fill: trivial_augment(images, u)),
    Augmentation("rand_augment", slice(26, 30), lambda images, u, value, fill: rand_augment(images, u, value)),
    Augmentation("color_jitter", slice(21, 25), lambda images, u, value, fill: color_jitter(images, u, value)),
    Augmentation("grayscale", slice(25, 26), lambda images, u, value, fill: grayscale(images, u, value)),
    Augmentation("cutout", slice(3, 5), cutout),
    Augmentation("random_erasing", slice(5, 10), random_erasing),
)


def to_input(
    images: Tensor, size: int, interpolation: str, mean: Tensor, std: Tensor, boxes: Tensor | None = None
) -> Tensor:
    """uint8 [n, h, w, 3] -> normalized [n, 3, size, size] in the type of `mean` and `std` ([3], in 0..1).

    `boxes`: int64 [n, 4], the part of each image to use (see `random_boxes`); None: all of it.

    The memory format is channels_last. Resizing is `torch.nn.functional.interpolate`, what torchvision's `resize`
    calls, with antialiasing if it shrinks. It is linear and its weights sum to one, so the images are normalized
    first, while they are small.
    """
    height, width = images.shape[1:3]
    black, white = -mean / std, (1 - mean) / std
    # Rows of width * 3 values: broadcasting over a dimension of 3 is slow on CPUs.
    rows = images.flatten(2).to(mean.dtype)
    torch.addcmul(black.repeat(width), rows, (1 / (255 * std)).repeat(width), out=rows)
    pixels, smooth = rows.unflatten(2, (width, 3)), interpolation != "nearest"
    if boxes is None and (height, width) == (size, size):
        return pixels.permute(0, 3, 1, 2)
    if boxes is not None:
        resized = crop_and_resize(pixels, boxes, size, interpolation)
    elif max(height, width) <= size:
        wide = _enlarge(pixels.transpose(1, 2), size, interpolation).transpose(1, 2)
        resized = _enlarge(wide, size, interpolation)
    else:
        resized = F.interpolate(
            pixels.permute(0, 3, 1, 2),
            size=(size, size),
            mode=interpolation,
            align_corners=False if smooth else None,
            antialias=smooth,
        ).permute(0, 2, 3, 1)
    rows = resized.flatten(2)
    if interpolation == "bicubic":  # it overshoots at edges; PIL and torchvision clamp too
        rows = rows.clamp_(black.repeat(size), white.repeat(size))
    return rows.unflatten(2, (size, 3)).permute(0, 3, 1, 2)


def _enlarge(pixels: Tensor, size: int, interpolation: str) -> Tensor:
    """Enlarges along the second dimension: [n, side, ..., 3] -> [n, size, ..., 3].

    Measured on one CPU thread, both axes from 32 to 224 pixels are 6 to 18 times as fast as torch's bicubic kernel, and
    never slower for other modes and sizes. A matrix product with the same weights comes close, but must not use
    TensorFloat-32, and MKL sums in an order that depends on the batch.
    """
    return weighted_rows(pixels, *_taps(pixels.shape[1], size, interpolation, pixels.dtype, pixels.device))


@lru_cache(maxsize=16)
def _taps(side: int, size: int, interpolation: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The input pixels of each output pixel and their weights, both [size, taps]."""
    weights = resize_weights(side, size, interpolation, antialias=False)
    places = weights.abs().topk(int((weights != 0).sum(1).max()), dim=1).indices.sort(dim=1).values
    return places.to(device), weights.gather(1, places).to(device, dtype)


def resize_weights(side: int, size: int, interpolation: str, antialias: bool) -> Tensor:
    """The weights of `side` input pixels in `size` output pixels, [size, side], as `to_input` uses them.

    With antialiasing they are those that torch computes in float32; otherwise, for `_enlarge`, float64.
    """
    unit = torch.eye(side, dtype=torch.float32 if antialias else torch.float64)[None, None]
    options = {} if interpolation == "nearest" else {"align_corners": False, "antialias": antialias}
    # Its columns are resized, along the height only.
    return F.interpolate(unit, (size, side), mode=interpolation, **options)[0, 0]


def _reflect(position: Tensor, length: int) -> Tensor:
    return length - 1 - (length - 1 - position.abs()).abs()


def inside_boxes(top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, height: int, width: int) -> Tensor:
    """bool [n, height, width]: True inside each image's box."""
    y = torch.arange(height, device=top.device)
    x = torch.arange(width, device=top.device)
    down = (y >= top[:, None]) & (y < (top + tall)[:, None])
    across = (x >= left[:, None]) & (x < (left + wide)[:, None])
    return down[:, :, None] & across[:, None, :]


def _fill_boxes(images: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor, fill: Tensor) -> Tensor:
    inside = inside_boxes(top, left, tall, wide, *images.shape[1:3])
    return torch.where(inside[..., None], fill, images)

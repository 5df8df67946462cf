"""Random changes of color, equal to torchvision's functions on uint8 tensors, including its truncations.

A product that is added is rounded with the sum, once, as torch's CPU kernels do with a fused multiply-add; everything
else is rounded after each operation, so the results are the same on every device.
"""

import torch
from torch import Tensor

_BRIGHTNESS, _CONTRAST, _SATURATION = range(3)
_LUMA = torch.tensor([0.2989, 0.587, 0.114]).tolist()  # rounded to float32


def color_jitter(images: Tensor, u: Tensor, strength: float) -> Tensor:
    """torchvision's `ColorJitter(strength, strength, strength)`: brightness, contrast and saturation, in random order.

    Each factor is uniform in max(0, 1 - strength) .. 1 + strength. Like timm, it leaves the hue alone. images: uint8
    [n, height, width, 3]; u: [n, 4]: brightness, contrast, saturation, order.
    """
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = low + u[:, :3] * (high - low)
    order = (u[:, 3] * 6).long()
    first = order // 2
    second = (first + 1 + order % 2) % 3
    for kind in (each[:, None, None, None] for each in (first, second, 3 - first - second)):
        factor = factors[:, :, None, None].gather(1, kind)
        gray = gray_levels(images)[..., None]
        blended = torch.where(kind == _CONTRAST, mean_level(gray), gray) * (kind != _BRIGHTNESS)
        images = add_scaled(images * factor.float(), blended, (1 - factor).float()).clamp(0, 255).to(torch.uint8)
    return images


def grayscale(images: Tensor, u: Tensor, probability: float) -> Tensor:
    """torchvision's `RandomGrayscale(probability)`. images: uint8 [n, height, width, 3]; u: [n, 1]."""
    gray = gray_levels(images).to(torch.uint8)[..., None]
    return torch.where(u[:, :, None, None] < probability, gray, images)


def gray_levels(images: Tensor) -> Tensor:
    """torchvision's gray in integer levels: float32 [n, height, width]."""
    red, green, blue = images.float().unbind(-1)
    return add_scaled(add_scaled(red * _LUMA[0], green, _LUMA[1]), blue, _LUMA[2]).floor()


def mean_level(gray: Tensor) -> Tensor:
    """The mean of each image's integer levels, rounded once (GPUs' `mean` multiplies instead): float32 [n, 1, ...]."""
    dims = tuple(range(1, gray.ndim))
    return (gray.sum(dims, dtype=torch.float64, keepdim=True) / gray[0].numel()).float()


def add_scaled(base: Tensor, added: Tensor, factor: Tensor | float) -> Tensor:
    """base + added * factor in float32, rounded once: what torch's `add(alpha=...)` does with a fused multiply-add."""
    return (added.double() * factor + base).float()

"""data/color.py against torchvision's functions on uint8 tensors, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from test_trivial_augment import pictures
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from resnet_cifar.data.color import color_jitter, grayscale

COLOR_FUNCTIONS = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
ORDERS = ((0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 0, 1), (2, 1, 0))  # of the functions, by the fourth uniform
SIZES = [(32, 32), (33, 47), (3, 9), (1, 1), (130, 130)]
LAST = 1 - 2.0**-53


def jittered_by_torchvision(image: Tensor, factors: Sequence[float], order: Sequence[int]) -> Tensor:
    chw = image.permute(2, 0, 1)
    for kind in order:
        chw = COLOR_FUNCTIONS[kind](chw, factors[kind])
    return chw.permute(1, 2, 0)


@pytest.mark.parametrize("strength", [0.05, 0.4, 1.0, 2.5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_color_jitter_is_torchvisions_bit_for_bit(size: tuple[int, int], strength: float) -> None:
    """With every order, and both ends of the range of each factor."""
    images = pictures(*size).repeat(3, 1, 1, 1)
    u = torch.rand(len(images), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u[:, 3] = (torch.arange(len(images)) % 6 + 0.5) / 6
    u[0], u[1], u[2:5, :3], u[5:8, :3] = 0, LAST, torch.eye(3) * LAST, 1 - torch.eye(3).double()
    found = color_jitter(images, u, strength)
    low, high = max(0, 1 - strength), 1 + strength
    for row, image in enumerate(images):
        factors = [low + x * (high - low) for x in u[row, :3].tolist()]
        expected = jittered_by_torchvision(image, factors, ORDERS[int(u[row, 3] * 6)])
        torch.testing.assert_close(found[row], expected, rtol=0, atol=0)


def test_all_orders_are_drawn_equally_often_and_differ() -> None:
    assert len(set(ORDERS)) == 6
    assert all(sorted(order) == [0, 1, 2] for order in ORDERS)
    u = torch.tensor([[0.1, 0.9, 0.8, (number + 0.5) / 6] for number in range(6)], dtype=torch.float64)
    found = color_jitter(pictures(16, 16)[:1].expand(6, -1, -1, -1), u, 0.9)
    assert len({image.numpy().tobytes() for image in found}) == 6


def test_the_strength_zero_would_change_nothing_and_images_are_not_modified() -> None:
    images = pictures(16, 16)
    before, u = images.clone(), torch.full((len(images), 4), 0.3, dtype=torch.float64)
    torch.testing.assert_close(color_jitter(images, u, 0.0), before, rtol=0, atol=0)
    assert not torch.equal(color_jitter(images, u, 0.5), before)
    grayscale(images, u[:, :1], 1.0)
    torch.testing.assert_close(images, before, rtol=0, atol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_grayscale_is_torchvisions_with_its_probability(size: tuple[int, int]) -> None:
    images = pictures(*size)
    u = torch.linspace(0, LAST, len(images), dtype=torch.float64)[:, None]
    gray = tv.rgb_to_grayscale(images.permute(0, 3, 1, 2), num_output_channels=3).permute(0, 2, 3, 1)
    for probability in (0.0, 0.3, 1.0):
        expected = torch.where(u[:, :, None, None] < probability, gray, images)
        torch.testing.assert_close(grayscale(images, u, probability), expected, rtol=0, atol=0)

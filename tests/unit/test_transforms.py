"""data/transforms.py and data/mixing.py against torchvision, and against the papers' formulas in plain loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from resnet_cifar.data import mixing, transforms
from resnet_cifar.data.resized_crop import ASPECTS, content_boxes, random_boxes
from resnet_cifar.data.sources.image_io import BORDER

FILL = torch.tensor([7, 130, 251], dtype=torch.uint8)
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


def pictures(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)


def uniforms(n: int, columns: int, seed: int = 0) -> Tensor:
    return torch.rand(n, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Crop and flip


@st.composite
def crops(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Height, width, padding, seed."""
    height, width = draw(st.integers(2, 14)), draw(st.integers(2, 14))
    return height, width, draw(st.integers(0, min(height, width) - 1)), draw(st.integers(0, 1000))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(crops())
def test_crop_and_flip_is_torchvisions_pad_crop_and_hflip(case: tuple[int, int, int, int]) -> None:
    height, width, padding, seed = case
    images, u = pictures(6, height, width, seed), uniforms(6, 2, seed)
    u[0], u[1] = 0, 1 - 2.0**-53  # both ends of the range
    flips = torch.tensor([0, 1, 1, 0, 1, 0])
    found = transforms.crop_and_flip(images, u, flips, padding)
    for row in range(6):
        top, left = (math.floor(float(x) * (2 * padding + 1)) for x in u[row])
        chw = images[row].permute(2, 0, 1)
        padded = tv.pad(chw, [padding] * 4, padding_mode="reflect") if padding else chw
        expected = tv.crop(padded, top, left, height, width)
        expected = tv.hflip(expected) if flips[row] else expected
        torch.testing.assert_close(found[row].permute(2, 0, 1), expected, rtol=0, atol=0)


def test_crops_reach_every_offset_about_equally() -> None:
    """A picture whose pixel value is its place tells the offset of its crop."""
    places = torch.arange(100).reshape(1, 10, 10, 1).expand(4000, 10, 10, 3).to(torch.uint8)
    found = transforms.crop_and_flip(places, uniforms(4000, 2), torch.zeros(4000, dtype=torch.uint8), 2)
    center = found[:, 5, 5, 0].long()
    for shift in (center // 10 - 5, center % 10 - 5):
        counts = torch.bincount(shift + 2, minlength=5)
        assert len(counts) == 5
        assert abs(counts - 800).max() < 120


# Cutout and erase


def blanked_by_hand(image: Tensor, top: int, left: int, tall: int, wide: int) -> Tensor:
    """The image with a box filled, the box cut off at the border."""
    expected = image.clone()
    height, width = image.shape[:2]
    for y in range(max(top, 0), min(top + tall, height)):
        for x in range(max(left, 0), min(left + wide, width)):
            expected[y, x] = FILL
    return expected


@pytest.mark.parametrize("side", [1, 2, 5, 8, 30])
def test_cutout_fills_a_square_around_its_center_and_nothing_else(side: int) -> None:
    images, u = pictures(20, 12, 9), uniforms(20, 2)
    u[0], u[1] = 0, 1 - 2.0**-53
    found = transforms.cutout(images, u, side, FILL)
    for row in range(20):
        centre_y, centre_x = math.floor(float(u[row, 0]) * 12), math.floor(float(u[row, 1]) * 9)
        expected = blanked_by_hand(images[row], centre_y - side // 2, centre_x - side // 2, side, side)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=0)


def test_cutout_in_the_middle_has_its_whole_area() -> None:
    blank = transforms.cutout(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.full((1, 2), 0.5).double(), 8, FILL)
    assert int((blank == FILL).all(-1).sum()) == 64


def test_random_erasing_fills_the_box_of_its_formula_with_its_probability() -> None:
    images, u = pictures(64, 20, 16), uniforms(64, 5)
    found = transforms.random_erasing(images, u, 0.5, FILL)
    erased = 0
    for row in range(64):
        whether, area_u, aspect_u, down, right = (float(x) for x in u[row])
        tall = wide = 0
        if whether < 0.5:
            erased += 1
            area = 20 * 16 * (0.02 + area_u * 0.31)
            aspect = math.exp(math.log(0.3) + aspect_u * (math.log(3.3) - math.log(0.3)))
            tall = min(max(round(math.sqrt(area * aspect)), 1), 20)
            wide = min(max(round(math.sqrt(area / aspect)), 1), 16)
        top, left = math.floor(down * (20 - tall + 1)), math.floor(right * (16 - wide + 1))
        torch.testing.assert_close(found[row], blanked_by_hand(images[row], top, left, tall, wide), rtol=0, atol=0)
    assert 16 < erased < 48


def test_erased_boxes_have_torchvisions_areas_and_reach_every_corner() -> None:
    """Areas 2 to 33 %, aspects 0.3 to 3.3, to a pixel's rounding."""
    blank = torch.zeros(2000, 64, 64, 3, dtype=torch.uint8)
    inside = (transforms.random_erasing(blank, uniforms(2000, 5), 1.0, FILL) == FILL).all(-1)
    tall, wide = inside.any(2).sum(1), inside.any(1).sum(1)
    torch.testing.assert_close(inside.sum((1, 2)), tall * wide)  # one rectangle each
    area, aspect = tall * wide / 64**2, tall / wide
    assert 0.015 < area.min() < 0.04
    assert 0.29 < area.max() < 0.345
    assert 0.25 < aspect.min() < 0.36
    assert 2.7 < aspect.max() < 3.9
    for y, x in ((0, 0), (0, 63), (63, 0), (63, 63)):
        assert inside[:, y, x].any()


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_erase_never_and_always(probability: float) -> None:
    images = pictures(200, 16, 16)
    changed = (transforms.random_erasing(images, uniforms(200, 5), probability, FILL) != images).flatten(1).any(1)
    assert changed.all() if probability else not changed.any()


def test_the_stored_images_are_not_modified() -> None:
    images = pictures(4, 8, 8)
    before = images.clone()
    cropped = transforms.crop_and_flip(images, uniforms(4, 2), torch.ones(4, dtype=torch.uint8), 0)
    transforms.cutout(cropped, uniforms(4, 2), 4, FILL)
    transforms.random_erasing(images, uniforms(4, 5), 1.0, FILL)
    transforms.to_input(images, 8, "bilinear", torch.tensor(MEAN), torch.tensor(STD))
    torch.testing.assert_close(images, before, rtol=0, atol=0)


# To the network's input


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        *[(8, 8, 19), (8, 8, 8), (20, 20, 7), (12, 9, 16), (16, 9, 12), (9, 16, 16), (1, 7, 9)],
        *[(32, 32, 224), (128, 40, 130), (130, 40, 130)],
    ],
)
def test_to_input_is_torchvisions_resize_and_normalize(
    height: int, width: int, size: int, mode: str, dtype: torch.dtype, tolerance: float
) -> None:
    images = pictures(3, height, width)
    found = transforms.to_input(images, size, mode, torch.tensor(MEAN, dtype=dtype), torch.tensor(STD, dtype=dtype))
    antialias = mode != "nearest" and size < max(height, width)
    pixels = images.permute(0, 3, 1, 2).double()
    resized = tv.resize(pixels, [size, size], interpolation=MODES[mode], antialias=antialias)
    expected = tv.normalize(resized.clamp(0, 255) / 255, list(MEAN), list(STD))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [8, 12, 5])
def test_to_input_is_channels_last(size: int) -> None:
    found = transforms.to_input(pictures(2, 8, 8), size, "bilinear", torch.tensor(MEAN), torch.tensor(STD))
    assert found.shape == (2, 3, size, size)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 19), (20, 20, 7), (12, 9, 16), (32, 32, 224)])
def test_nearest_selects_the_same_pixels_as_torch(height: int, width: int, size: int) -> None:
    images = pictures(3, height, width)
    found = transforms.to_input(images, size, "nearest", torch.zeros(3), torch.ones(3) / 255)
    expected = F.interpolate(images.permute(0, 3, 1, 2).float(), size=(size, size), mode="nearest")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_enlarging_in_float32_is_within_rounding_of_float64(mode: str) -> None:
    """torch's own bicubic kernel is off by 150 epsilon here, because it computes its weights in float32."""
    images = pictures(4, 32, 32)
    exact, found = (
        transforms.to_input(images, 224, mode, *(torch.tensor(x, dtype=dtype) for x in (MEAN, STD)))
        for dtype in (torch.float64, torch.float32)
    )
    assert (found - exact).abs().max() < 12 * torch.finfo(torch.float32).eps


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("side", "size"), [(32, 112), (9, 13), (32, 32), (60, 62), (20, 7)])
def test_an_image_does_not_depend_on_its_batch(side: int, size: int, mode: str, dtype: torch.dtype) -> None:
    """Bit for bit, on any number of threads. (MKL's batched matrix products, which would do too, fail this.)"""
    images, form = pictures(9, side, side), (torch.tensor(MEAN, dtype=dtype), torch.tensor(STD, dtype=dtype))
    whole = transforms.to_input(images, size, mode, *form)
    for n in (1, 2, 5, 8):
        parts = [transforms.to_input(part, size, mode, *form) for part in images.split(n)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


class _Operators(TorchDispatchMode):
    """Counts the elements that operators write; views write none."""

    written = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if not op.is_view and "empty" not in op.overloadpacket.__name__:
            self.written += sum(part.numel() for part in tree_leaves(result) if isinstance(part, Tensor))
        return result


def test_enlarging_writes_each_pixel_twice() -> None:
    """By the sum along the height and by the clamp, in place; all else has at most an eighth of the size."""
    images, form = pictures(4, 32, 32), (torch.tensor(MEAN), torch.tensor(STD))
    transforms.to_input(images, 256, "bicubic", *form)  # the weights are found once
    with _Operators() as operators:
        transforms.to_input(images, 256, "bicubic", *form)
    assert operators.written <= 2.5 * 4 * 3 * 256 * 256


def test_shrinking_without_antialiasing_would_differ() -> None:
    """So that the comparison above can tell whether it is on."""
    pixels = pictures(1, 32, 32).permute(0, 3, 1, 2).double()
    smooth, rough = (tv.resize(pixels, [8, 8], antialias=antialias) for antialias in (True, False))
    assert (smooth - rough).abs().max() > 10


# Random resized crops


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width", "size"), [(20, 20, 7), (32, 32, 48), (40, 33, 24), (16, 16, 16)])
def test_a_random_resized_crop_is_torchvisions(height: int, width: int, size: int, mode: str) -> None:
    """Both ends of every range among them. torch computes its weights in float32 whatever the images are in."""
    images, u = pictures(24, height, width), uniforms(24, 4)
    u[:4], u[4:8] = torch.eye(4, dtype=torch.float64) * (1 - 2.0**-53), 1 - 2.0**-53
    boxes = random_boxes(u, (0.08, 1.0), ASPECTS, height, width)
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([height, width])).all()
    form = torch.tensor(MEAN, dtype=torch.float64), torch.tensor(STD, dtype=torch.float64)
    found = transforms.to_input(images, size, mode, *form, boxes)
    for row, box in enumerate(boxes.tolist()):
        pixels, smooth = images[row].permute(2, 0, 1).double(), mode != "nearest"
        resized = tv.resized_crop(pixels, *box, [size, size], interpolation=MODES[mode], antialias=smooth)
        expected = tv.normalize(resized.clamp(0, 255) / 255, list(MEAN), list(STD))
        torch.testing.assert_close(found[row], expected, rtol=0, atol=2e-5)


def test_crops_of_padded_images_lie_inside_the_picture() -> None:
    """As drawn on the picture alone; a picture of the border's color counts as a whole."""
    border = torch.tensor(BORDER, dtype=torch.uint8)
    images, u = border.expand(6, 24, 24, 3).clone(), uniforms(6, 4)
    contents = [(4, 0, 16, 24), (0, 9, 24, 5), (0, 0, 24, 24), (11, 0, 1, 24), (23, 23, 1, 1)]
    for image, (top, left, tall, wide) in zip(images, contents, strict=False):
        image[top : top + tall, left : left + wide] = pictures(1, tall, wide)[0]
        image[top + tall // 2, left : left + wide] = border  # a line of that color does not cut it
        image[top, left], image[top + tall - 1, left + wide - 1] = 0, 255
    found = content_boxes(images, border)
    assert found.tolist() == [*map(list, contents), [0, 0, 24, 24]]
    boxes = random_boxes(u, (0.3, 1.0), ASPECTS, found[:, 2], found[:, 3])
    for row, (_, _, tall, wide) in enumerate(found.tolist()):
        alone = random_boxes(u[row : row + 1], (0.3, 1.0), ASPECTS, tall, wide)
        torch.testing.assert_close(boxes[row : row + 1], alone, rtol=0, atol=0)


def test_resized_crops_have_torchvisions_areas_and_aspects() -> None:
    """The distribution of its get_params, which makes several attempts, over crops that fit at the first."""
    from torchvision.transforms.v2 import RandomResizedCrop

    side, count = 200, 4000
    ours = random_boxes(uniforms(count, 4), (0.2, 1.0), ASPECTS, side, side)[:, 2:].double()
    torch.manual_seed(0)
    sampled = RandomResizedCrop(side, scale=(0.2, 0.7))
    theirs = [sampled.make_params([torch.zeros(3, side, side)]) for _ in range(count)]
    theirs = torch.tensor([[each["height"], each["width"]] for each in theirs]).double()
    ours = ours[ours.prod(1) < 0.7 * side**2]
    probabilities = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    for quantity in (lambda boxes: boxes.prod(1), lambda boxes: (boxes[:, 0] / boxes[:, 1]).log()):
        found, expected = quantity(ours), quantity(theirs)
        difference = found.quantile(probabilities) - expected.quantile(probabilities)
        assert (difference.abs() < 0.04 * (expected.max() - expected.min())).all()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("side", "size"), [(32, 48), (40, 24)])
def test_a_resized_crop_does_not_depend_on_its_batch(side: int, size: int, mode: str) -> None:
    images, form = pictures(9, side, side), (torch.tensor(MEAN), torch.tensor(STD))
    boxes = random_boxes(uniforms(9, 4), (0.1, 1.0), ASPECTS, side, side)
    whole = transforms.to_input(images, size, mode, *form, boxes)
    parts = [transforms.to_input(images[n : n + 2], size, mode, *form, boxes[n : n + 2]) for n in range(0, 9, 2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


# Mix


def two_kinds(pairs: int, size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Even rows all 0 and of class 0, odd rows all 1 and of class 1: a pixel's value is the odd row's share of it."""
    inputs = torch.tensor([0, 1], dtype=dtype).repeat(pairs)[:, None, None, None].expand(-1, 3, size, size)
    return inputs.contiguous(), torch.eye(2, dtype=dtype).repeat(pairs, 1)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_cutmix_labels_match_the_share_of_pixels_exactly(size: int, seed: int) -> None:
    inputs, targets = two_kinds(8, size)
    lam, u = uniforms(8, 1, seed)[:, 0], uniforms(8, 2, seed + 1)
    mixed, labels = mixing.mix(inputs, targets, mixing.cutmix_share(lam, u, size))
    assert set(mixed.unique().tolist()) <= {0.0, 1.0}
    odd = (mixed[:, 0] == 1).sum((1, 2))  # pixels counted
    torch.testing.assert_close(labels[:, 1], odd.double() / size**2, rtol=0, atol=1e-15)
    torch.testing.assert_close(labels.sum(1), torch.ones(16, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [9, 32])
def test_cutmix_boxes_are_those_of_the_paper(size: int) -> None:
    """A box of side sqrt(1 - lam) around a uniform center, cut off at the border: 0 inside, 1 outside."""
    lam, u = uniforms(40, 1)[:, 0], uniforms(40, 2, 1)
    keep = mixing.cutmix_share(lam, u, size)
    assert keep.shape == (40, 1, size, size)
    for pair in range(40):
        half = int(size * math.sqrt(1 - float(lam[pair]))) // 2
        centre_y, centre_x = int(float(u[pair, 0]) * size), int(float(u[pair, 1]) * size)
        expected = np.ones((size, size))
        top, left = max(centre_y - half, 0), max(centre_x - half, 0)
        expected[top : centre_y + half, left : centre_x + half] = 0
        np.testing.assert_array_equal(keep[pair, 0].numpy(), expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_mixup_is_its_formula(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 5, 5, dtype=dtype, generator=generator)
    y = torch.randn(6, 4, dtype=dtype, generator=generator).softmax(1)
    lam = torch.tensor([0.0, 0.3, 1.0], dtype=dtype)
    mixed, labels = mixing.mix(x, y, mixing.mixup_share(lam))
    assert mixed.dtype == labels.dtype == dtype
    for pair, share in enumerate(lam.tolist()):
        for mine, other in ((2 * pair, 2 * pair + 1), (2 * pair + 1, 2 * pair)):
            expected = x[mine] * share + x[other] * (1 - share), y[mine] * share + y[other] * (1 - share)
            torch.testing.assert_close((mixed[mine], labels[mine]), expected, rtol=tolerance, atol=tolerance)


def test_cutmix_copies_pixels_bit_for_bit() -> None:
    x = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    keep = mixing.cutmix_share(uniforms(4, 1)[:, 0].float(), uniforms(4, 2), 9)
    mixed = mixing.mix(x, torch.eye(8), keep)[0]
    partner = x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    assert torch.equal(mixed, torch.where(keep.repeat_interleave(2, dim=0) == 1, x, partner))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_writes_each_pixel_once(kind: str) -> None:
    x = torch.zeros(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    lam = torch.full((4,), 0.5)
    keep = mixing.mixup_share(lam) if kind == "mixup" else mixing.cutmix_share(lam, uniforms(4, 2), 32)
    with _Operators() as operators:
        mixing.mix(x, torch.eye(8), keep)
    assert x.numel() <= operators.written <= 1.05 * x.numel()


def test_mixed_labels_sum_to_one_in_float32() -> None:
    inputs, targets = two_kinds(50, 224, torch.float32)
    lam, u = uniforms(50, 1)[:, 0].float(), uniforms(50, 2)
    for keep in (mixing.mixup_share(lam), mixing.cutmix_share(lam, u, 224)):
        labels = mixing.mix(inputs, targets, keep)[1]
        torch.testing.assert_close(labels.sum(1), torch.ones(100), rtol=0, atol=2e-7)


def test_a_pair_depends_on_itself_only() -> None:
    x, y = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.eye(6)
    keep = mixing.cutmix_share(torch.tensor([0.2, 0.5, 0.7]), uniforms(3, 2), 4)
    mixed, labels = mixing.mix(x, y, keep)
    for pair in range(3):
        own = slice(2 * pair, 2 * pair + 2)
        alone = mixing.mix(x[own], y[own], keep[pair : pair + 1])
        torch.testing.assert_close((mixed[own], labels[own]), alone, rtol=0, atol=0)
        assert int((labels[own] > 0).sum(0).count_nonzero()) <= 2


def test_mixing_keeps_channels_last() -> None:
    x = torch.zeros(4, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    mixed, _ = mixing.mix(x, torch.eye(4), mixing.mixup_share(torch.tensor([0.4, 0.6])))
    assert mixed.is_contiguous(memory_format=torch.channels_last)

"""data/trivial_augment.py against torchvision's TrivialAugmentWide and RandAugment, every operation and sign."""

from __future__ import annotations

from collections import Counter

import pytest
import scipy.stats
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment, TrivialAugmentWide

from resnet_cifar import rng
from resnet_cifar.data.trivial_augment import MAGNITUDES, OPERATIONS, rand_augment, trivial_augment

# Both sides even or both odd: a 32x33 image that is turned by 90 degrees takes its pixels from the edge between two,
# and torchvision's own choice there depends on how the machine's matrix product rounds.
SIZES = [(32, 32), (33, 47), (12, 8), (3, 9)]
TRIVIAL, RAND = TrivialAugmentWide(), RandAugment()


def pictures(height: int, width: int) -> Tensor:
    """Noise, constants, gradients and images of few levels: uint8 [n, height, width, 3]."""
    generator = torch.Generator().manual_seed(height * width)

    def noise(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (height, width, 3), generator=generator)

    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    outlier = torch.full((height, width, 3), 90)
    outlier[0, 0] = torch.tensor([0, 255, 91])
    kinds = [
        noise(0, 256),
        noise(0, 256),
        noise(100, 104),
        noise(0, 2) * 255,
        noise(0, 26) * 10,  # grays whose whole level is a matter of rounding
        *(torch.full((height, width, 3), level) for level in (0, 1, 128, 200, 255)),
        torch.tensor([10, 200, 90]).expand(height, width, 3),
        (down * 255 // height)[..., None].expand(-1, -1, 3),
        torch.stack([across * 255 // width, 255 - across * 255 // width, down * 99 // height], -1),
        outlier,
    ]
    return torch.stack(kinds).to(torch.uint8)


def uniforms_of(operation: int, magnitude: int, negative: bool) -> Tensor:
    """What draws just this: float64 [3], from the middle of each one's part of 0..1."""
    parts = [(operation + 0.5) / len(OPERATIONS), (magnitude + 0.5) / MAGNITUDES, 0.25 if negative else 0.75]
    return torch.tensor(parts, dtype=torch.float64)


def torchvision_operation(
    images: Tensor, name: str, magnitude: int, negative: bool, theirs: TrivialAugmentWide | RandAugment = TRIVIAL
) -> Tensor:
    """torchvision's operation, as its class looks the magnitude up and applies it."""
    height, width = images.shape[1:3]
    magnitudes, signed = theirs._AUGMENTATION_SPACE[name]
    table = magnitudes(MAGNITUDES, height, width)
    value = 0.0 if table is None else float(table[magnitude]) * (-1 if signed and negative else 1)
    chw = images.permute(0, 3, 1, 2).contiguous()
    changed = theirs._apply_image_or_video_transform(chw, name, value, InterpolationMode.NEAREST, theirs._fill)
    return changed.permute(0, 2, 3, 1)


def test_the_operations_and_the_number_of_magnitudes_are_torchvisions() -> None:
    for theirs in (TRIVIAL, RAND):
        assert tuple(theirs._AUGMENTATION_SPACE) == OPERATIONS
        assert theirs.num_magnitude_bins == MAGNITUDES
    assert RAND.num_ops == 2


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvisions_bit_for_bit(name: str, size: tuple[int, int]) -> None:
    images = pictures(*size)
    drawn = [(magnitude, negative) for magnitude in range(MAGNITUDES) for negative in (False, True)]
    u = torch.stack([uniforms_of(OPERATIONS.index(name), *settings) for settings in drawn])
    found = trivial_augment(images.repeat(len(drawn), 1, 1, 1), u.repeat_interleave(len(images), 0))
    for settings, ours in zip(drawn, found.split(len(images)), strict=True):
        expected = torchvision_operation(images, name, *settings)
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, msg=f"{name} {settings}")


@pytest.mark.parametrize("size", [(33, 47), (12, 8), (50, 20)], ids=str)
@pytest.mark.parametrize("magnitude", [9, 30])
def test_rand_augment_is_two_of_torchvisions_operations_bit_for_bit(magnitude: int, size: tuple[int, int]) -> None:
    """Every operation and sign is drawn, as the first and as the second of two."""
    images = pictures(*size)
    drawn = [(number, negative) for number in range(len(OPERATIONS)) for negative in (False, True)]
    pairs = list(zip(drawn, [*drawn[9:], *drawn[:9]], strict=True))
    rows = [[part for each in pair for part in uniforms_of(each[0], 0, each[1])[::2]] for pair in pairs]
    u = torch.tensor(rows, dtype=torch.float64).repeat_interleave(len(images), 0)
    found = rand_augment(images.repeat(len(pairs), 1, 1, 1), u, magnitude)
    for pair, ours in zip(pairs, found.split(len(images)), strict=True):
        expected = images
        for number, negative in pair:
            expected = torchvision_operation(expected, OPERATIONS[number], magnitude, negative, RAND)
        torch.testing.assert_close(ours, expected, rtol=0, atol=0, msg=str(pair))


def test_images_of_one_batch_have_operations_of_their_own_and_micro_batches_change_nothing() -> None:
    u = torch.from_numpy(rng.uniforms(0, "test trivial", count=600)).view(200, 3)
    images = pictures(20, 14).repeat(15, 1, 1, 1)[:200]
    whole = trivial_augment(images, u)
    for size in (1, 8, 50):
        parts = [trivial_augment(*part) for part in zip(images.split(size), u.split(size), strict=True)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=0)


def test_every_operation_magnitude_and_sign_is_drawn_equally_often() -> None:
    """Told by what becomes of one noisy image; what is neutral, or has no sign, is one outcome of a larger share."""
    image = pictures(24, 24)[:1]
    everything = torch.stack(
        [
            uniforms_of(operation, magnitude, negative)
            for operation in range(len(OPERATIONS))
            for magnitude in range(MAGNITUDES)
            for negative in (False, True)
        ]
    )

    def outcomes(u: Tensor) -> Counter[bytes]:
        return Counter(found.numpy().tobytes() for found in trivial_augment(image.expand(len(u), -1, -1, -1), u))

    shares = outcomes(everything)
    assert len(shares) > 500
    u = torch.from_numpy(rng.uniforms(1, "test trivial", count=3 * 12 * len(everything))).view(-1, 3)
    found = outcomes(u)
    assert found.keys() <= shares.keys()
    counts = [found[outcome] for outcome in shares]
    assert scipy.stats.chisquare(counts, [12 * share for share in shares.values()]).pvalue > 0.001


def test_the_ends_of_the_uniforms_are_within_the_space() -> None:
    images = pictures(12, 12)[:2]
    u = torch.tensor([[0.0] * 3, [1 - 2.0**-53] * 3], dtype=torch.float64)
    expected = torch.cat([images[:1], torchvision_operation(images[1:], "Equalize", MAGNITUDES - 1, False)])
    torch.testing.assert_close(trivial_augment(images, u), expected, rtol=0, atol=0)


def test_the_images_are_not_modified() -> None:
    images = pictures(10, 10)
    before = images.clone()
    for operation in range(len(OPERATIONS)):
        trivial_augment(images, uniforms_of(operation, 30, True).expand(len(images), -1))
    torch.testing.assert_close(images, before, rtol=0, atol=0)

"""data/loader.py: the same global batch on any number of processes and in any micro-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from augmentations import EVERYTHING, NOTHING
from torch import Tensor

from resnet_cifar import rng
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.data import transforms
from resnet_cifar.data.color import color_jitter, grayscale
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.loader import Loader
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.resized_crop import ASPECTS, random_boxes
from resnet_cifar.data.sampling import sample_indices
from resnet_cifar.data.sources.image_io import BORDER, Decoding
from resnet_cifar.data.trivial_augment import rand_augment, trivial_augment
from resnet_cifar.training.plan import Plan

CLASSES = 10


def recipe_of(augment: dict[str, Any], batch_size: int = 16, size: int = 12, **data: Any) -> Recipe:
    return parse(
        {
            "batch_size": batch_size,
            "model": {"ghost_batch_size": None},
            "data": {"source": "synthetic", "image_size": size, "interpolation": "bicubic", **data},
            "augment": augment,
            "phases": [{"epochs": 3, "lr": 0.1}],
        }
    )


def loader_of(
    recipe: Recipe, images: Tensor, world_size: int = 1, rank: int = 0, plain: bool = False, classes: int = CLASSES
) -> Loader:
    """`plain`: pixels stay in 0..1; else they are normalized."""
    labels = torch.arange(len(images)) % classes
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    preprocess = Preprocess(recipe.data, torch.tensor(mean), torch.tensor(std))
    data = ImageDataset(images, labels, np.arange(len(images)))
    return Loader(recipe, data, classes, preprocess, Plan(recipe, len(images), world_size).rows(rank))


def steps_of(loader: Loader) -> int:
    return Plan(loader.recipe, len(loader.images), 1).steps


def indices_of(loader: Loader, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of a step's rows, and their epochs."""
    recipe = loader.recipe
    return sample_indices(recipe.seed, len(loader.images), recipe.batch_size, step, loader.rows)


def joined(parts: Any) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*parts, strict=True)
    return torch.cat(inputs), torch.cat(targets)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (50, 9, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("flip", ["random", "alternating"])
@pytest.mark.parametrize(("world", "micro_batch"), [(1, 4), (1, 2), (2, 0), (2, 4), (4, 0), (4, 2), (8, 2)])
def test_any_ranks_and_micro_batches_give_the_same_batch_bit_for_bit(
    images: Tensor, world: int, micro_batch: int, flip: str
) -> None:
    recipe = recipe_of({**EVERYTHING, "flip": flip})
    whole = loader_of(recipe, images)
    ranks = [loader_of(recipe, images, world, rank) for rank in range(world)]
    for step in range(8):  # into the third epoch
        expected = joined(whole.batch(step))
        parts = [list(rank.batch(step, micro_batch=micro_batch)) for rank in ranks]
        assert {len(inputs) for part in parts for inputs, _ in part} == {micro_batch or 16 // world}
        found = joined(part for rank in parts for part in rank)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_every_augmentation_changes_the_batch(images: Tensor) -> None:
    recipe = recipe_of(EVERYTHING)
    ours = joined(loader_of(recipe, images).batch(1))[0]
    for field, off in NOTHING.items():
        without = replace(recipe, augment=replace(recipe.augment, **{field: off}))
        theirs = joined(loader_of(without, images).batch(1))[0]
        assert not torch.equal(ours, theirs), field


def test_augmentation_order_and_columns_of_random_numbers(images: Tensor) -> None:
    """A new augmentation takes columns of its own: if these moved, every run would change."""
    settings = {"crop_padding": 2, "trivial_augment": True, "cutout": 3, "random_erasing": 0.5}
    settings |= {"random_resized_crop": 0.3, "color_jitter": 0.4, "grayscale": 0.3, "rand_augment": 9}
    recipe = recipe_of(settings)
    ours = loader_of(recipe, images)
    indices, _ = indices_of(ours, 1)
    u = torch.from_numpy(rng.row_uniforms(recipe.seed, "augment", 1, slice(0, 16)))
    fill = (255 * ours.preprocess.mean).round().to(torch.uint8)
    expected = transforms.crop_and_flip(images[indices], u[:, 0:2], u[:, 2] < 0.5, 2)
    expected = trivial_augment(expected, u[:, 14:17])
    expected = rand_augment(expected, u[:, 26:30], 9)
    expected = color_jitter(expected, u[:, 21:25], 0.4)
    expected = grayscale(expected, u[:, 25:26], 0.3)
    expected = transforms.cutout(expected, u[:, 3:5], 3, fill)
    expected = transforms.random_erasing(expected, u[:, 5:10], 0.5, fill)
    expected = ours.preprocess(expected, boxes=random_boxes(u[:, 17:21], (0.3, 1.0), ASPECTS, 9, 9))
    torch.testing.assert_close(joined(ours.batch(1))[0], expected, rtol=0, atol=0)


def test_random_resized_crops_of_padded_images_leave_the_border_out(images: Tensor) -> None:
    """They show gray pictures alone; the border, whose channels differ, is found before the jitter changes it."""
    recipe = recipe_of({**NOTHING, "random_resized_crop": 0.2, "color_jitter": 0.5}, 16, 12, decode_mode="pad")
    padded = torch.tensor(BORDER, dtype=torch.uint8).expand(len(images), 20, 20, 3).clone()
    padded[:, 7:13] = 250
    ours = loader_of(recipe, padded)
    cropped = replace(ours.preprocess, decoding=Decoding((20, 20), mode="pad"))
    padding = Loader(recipe, ours.images, CLASSES, cropped, ours.rows)
    for loader, grayness in ((padding, True), (ours, False)):
        inputs = joined(loader.batch(0))[0].movedim(1, -1) * cropped.std + cropped.mean
        assert ((inputs.amax(-1) - inputs.amin(-1)).max() < 1e-5) == grayness


def test_steps_in_sequence_equal_steps_on_their_own(images: Tensor) -> None:
    """A loader draws a step ahead: resuming at a step, or asking for one out of order, gives the same batch."""
    recipe = recipe_of(EVERYTHING)
    ours, other = loader_of(recipe, images), loader_of(recipe, images)
    for start in (0, 3):
        steps = range(start, steps_of(ours))
        found = {step: joined(ours.batch(step, micro_batch=8)) for step in steps}
        for step in reversed(steps):
            torch.testing.assert_close(found[step], joined(other.batch(step, micro_batch=8)), rtol=0, atol=0)


def test_without_augmentation_a_batch_is_the_sampled_images(images: Tensor) -> None:
    ours = loader_of(recipe_of(NOTHING, size=9), images, plain=True)
    for step in range(steps_of(ours)):
        indices, _ = indices_of(ours, step)
        inputs, targets = joined(ours.batch(step))
        pixels = (inputs * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        torch.testing.assert_close(pixels, images[indices], rtol=0, atol=0)
        assert targets.argmax(1).tolist() == [index % CLASSES for index in indices]
        assert targets.sum() == 16


def flips(ours: Loader, images: Tensor) -> dict[tuple[int, int], bool]:
    """(image, epoch) -> whether it was flipped; nothing else may have happened to it."""
    found = {}
    for step in range(steps_of(ours)):
        indices, epochs = indices_of(ours, step)
        pixels = (joined(ours.batch(step))[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        for index, epoch, seen in zip(indices.tolist(), epochs.tolist(), pixels, strict=True):
            flipped = torch.equal(seen, images[index].flip(1))
            assert flipped or torch.equal(seen, images[index])
            found[index, epoch] = flipped
    return found


def test_the_alternating_flip_starts_at_random_and_alternates_for_each_image(images: Tensor) -> None:
    found = flips(
        loader_of(recipe_of({"crop_padding": 0, "flip": "alternating"}, batch_size=10, size=9), images, plain=True),
        images,
    )
    assert len(found) == 3 * 50
    assert 13 < sum(found[image, 0] for image in range(50)) < 37
    for image in range(50):
        assert found[image, 0] != found[image, 1] != found[image, 2]


def test_the_random_flip_flips_half_and_does_not_alternate(images: Tensor) -> None:
    found = flips(
        loader_of(recipe_of({"crop_padding": 0, "flip": "random"}, batch_size=10, size=9), images, plain=True), images
    )
    assert 50 < sum(found.values()) < 100
    assert 10 < sum(found[image, 0] == found[image, 1] for image in range(50)) < 40


def test_overfit_trains_on_plain_images(images: Tensor) -> None:
    plain = joined(loader_of(recipe_of(NOTHING), images).batch(0))
    overfit = joined(loader_of(recipe_of({**EVERYTHING, "flip": "random"}, overfit_images=50), images).batch(0))
    torch.testing.assert_close(overfit, plain, rtol=0, atol=0)


def test_a_repeated_image_gets_new_random_numbers(images: Tensor) -> None:
    """One image, batch 2: the two rows and the steps show it differently."""
    ours = loader_of(recipe_of({"crop_padding": 4, "flip": "random"}, batch_size=4, size=9), images[:1])
    seen = torch.cat([joined(ours.batch(step))[0] for step in range(10)])
    assert len({picture.numpy().tobytes() for picture in seen}) > 20


def constant_images(count: int) -> Tensor:
    """Image i has the value i everywhere."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 8, 8, 3).contiguous()


@pytest.mark.parametrize(
    "augment", [{"mixup_alpha": 0.4}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}]
)
def test_mixed_labels_match_the_share_of_pixels(augment: dict[str, float]) -> None:
    """Every image is a class of its own, and its value tells how much of it a mixed image holds."""
    images = constant_images(64)
    ours = loader_of(recipe_of({**NOTHING, **augment}, 32, 8), images, plain=True, classes=64)
    mixed = 0
    for step in range(steps_of(ours)):
        inputs, targets = joined(ours.batch(step))
        values = torch.arange(64, dtype=torch.float64) / 255
        torch.testing.assert_close(inputs.double().mean((1, 2, 3)), targets.double() @ values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(targets.sum(1), torch.ones(32), rtol=0, atol=1e-6)
        mixed += int((targets.max(1).values < 0.999).sum())
    assert mixed > 30


def test_with_mixup_and_cutmix_each_is_applied_to_half_of_the_pairs() -> None:
    ours = loader_of(
        recipe_of({**NOTHING, "mixup_alpha": 8.0, "cutmix_alpha": 1.0}, 64, 8), constant_images(256), plain=True
    )
    blended = total = 0
    for step in range(steps_of(ours)):
        indices, _ = indices_of(ours, step)
        inputs = joined(ours.batch(step))[0] * 255
        for pair in range(32):
            pixels = inputs[2 * pair]
            ends = torch.tensor(indices[2 * pair : 2 * pair + 2])
            patched = ((pixels[..., None] - ends).abs() < 1e-3).any(-1).all()
            blended += int(not patched)
            total += 1
    assert total == 384
    assert 150 < blended < 234


def test_erased_pixels_have_the_normalization_mean(images: Tensor) -> None:
    """So an erased pixel is zero for the network, up to one gray level."""
    recipe = recipe_of({**NOTHING, "cutout": 30}, size=9)
    inputs, _ = joined(loader_of(recipe, images).batch(0))
    center = inputs[:, :, 4, 4]  # a square of 30 covers every 9x9 image
    assert center.abs().max() < 1 / (2 * 255 * 0.24) + 1e-6

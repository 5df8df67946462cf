"""What holds for every recipe, told by what the model is fed: from the recipe to the batch, on any number of ranks.

Rooms have tests of their own; here the whole way is checked, for shapes and settings that nobody thought of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trivial_augment import theirs as trivial
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from resnet_cifar import rng
from resnet_cifar.config.schema import Augment, Recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.loader import Loader, Preprocess
from resnet_cifar.data.trivial_augment import MAGNITUDES, OPERATIONS
from resnet_cifar.evaluation.predict import predict
from resnet_cifar.training.plan import Plan

some = settings(deadline=None, derandomize=True, max_examples=40)
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


# Any training run that the recipe allows


@dataclass(frozen=True)
class Run:
    """A recipe, the number of training images and of processes."""

    recipe: Recipe
    images: int
    world: int


@st.composite
def runs(draw: st.DrawFn, augment: st.SearchStrategy[Augment]) -> Run:
    """Shares of whole norm groups and pairs, cut into whole micro-batches; or a norm group over several shares."""
    norm = draw(st.none() | st.integers(2, 6))
    unit = math.lcm(2, norm or 1)
    units, world = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    micro = draw(st.sampled_from([0, *(unit * part for part in range(1, units + 1) if units % part == 0)]))
    if draw(st.booleans()):
        norm, micro = unit * units * world, 0
    recipe = parse(
        {
            "seed": draw(st.integers(0, 1000)),
            "batch_size": unit * units * world,
            "micro_batch": micro,
            "model": {"ghost_batch_size": norm},
            "data": {"source": "synthetic", "image_size": draw(st.integers(8, 12))},
            "phases": [{"epochs": draw(st.floats(0.1, 2.5)), "lr": 0.1}],
        }
    )
    return Run(replace(recipe, augment=draw(augment)), draw(st.integers(1, 90)), world)


NOTHING = st.just(Augment(crop_padding=0, flip="none"))
# What leaves an image of one colour as it is.
UNSEEN = st.builds(Augment, crop=st.integers(0, 4), flip=st.sampled_from(["none", "random", "alternating"]))
EVERYTHING = st.builds(
    Augment,
    crop=st.integers(0, 4),
    flip=st.sampled_from(["none", "random", "alternating"]),
    trivial=st.booleans(),
    cutout=st.integers(0, 9),
    erase=st.sampled_from([0.0, 0.5, 1.0]),
    mixup=st.sampled_from([0.0, 0.2, 1.0]),
    cutmix=st.sampled_from([0.0, 0.5, 1.0]),
)


def plain_images(count: int) -> Tensor:
    """Image i has the value i everywhere."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 8, 8, 3).contiguous()


def noise(count: int, height: int, width: int) -> Tensor:
    words = rng.words(0, "test images", count=count * height * width * 3)
    return torch.from_numpy((words >> np.uint64(56)).astype(np.uint8)).view(count, height, width, 3)


def batches_of(recipe: Recipe, images: Tensor, world: int = 1, rank: int = 0, plain: bool = True) -> Loader:
    """Every image is a class of its own; `plain`: pixels stay in 0..1. In float64, so that areas are exact."""
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (MEAN, STD)
    form = Preprocess(recipe.data, *(torch.tensor(values, dtype=torch.float64) for values in (mean, std)))
    data = ImageDataset(images, torch.arange(len(images)), np.arange(len(images)))
    return Loader(Plan(recipe, len(images), world), data, len(images), form, rank)


def fed(run: Run, images: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The step's global batch: what all ranks feed their models, one after the other."""
    ranks = (batches_of(run.recipe, images, run.world, rank) for rank in range(run.world))
    inputs, targets = zip(*(part for rank in ranks for part in rank.step(step)), strict=True)
    assert {len(part) for part in inputs} == {run.recipe.micro_batch or run.recipe.batch_size // run.world}
    return torch.cat(inputs), torch.cat(targets)


@some
@given(runs(NOTHING))
def test_models_are_fed_every_image_exactly_once_an_epoch_on_any_number_of_ranks(run: Run) -> None:
    images = plain_images(run.images)
    steps = Plan(run.recipe, run.images, run.world).steps
    inputs, targets = (
        torch.cat(parts) for parts in zip(*(fed(run, images, step) for step in range(steps)), strict=True)
    )
    seen = (inputs[:, 0, 0, 0] * 255).round().long()
    assert len(seen) == steps * run.recipe.batch_size, "every step is full"
    torch.testing.assert_close(targets.argmax(1), seen, rtol=0, atol=0)
    for epoch in seen.split(run.images):
        assert len(epoch.unique()) == len(epoch), "an image came twice in an epoch"


@some
@given(runs(EVERYTHING), st.integers(0, 30))
def test_the_global_batch_does_not_depend_on_ranks_and_micro_batches(run: Run, step: int) -> None:
    images = noise(run.images, 9, 8)
    alone = Run(replace(run.recipe, micro_batch=0), run.images, 1)
    torch.testing.assert_close(fed(run, images, step), fed(alone, images, step), rtol=0, atol=0)


@some
@given(runs(EVERYTHING), st.integers(0, 5))
def test_a_run_that_starts_at_any_step_is_fed_what_it_would_have_been(run: Run, start: int) -> None:
    ours = batches_of(run.recipe, noise(run.images, 9, 8), run.world, run.world - 1)
    for step, parts in enumerate(ours.steps(start), start=start):
        for found, expected in zip(parts, ours.step(step), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        if step == start + 2:
            break


@some
@given(st.integers(0, 2**63), st.integers(0, 2**40), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_a_rows_draws_do_not_depend_on_who_shares_the_rows(seed: int, step: int, shares: list[int]) -> None:
    ends = np.cumsum([0, *shares]).tolist()
    parts = [rng.row_uniforms(seed, "augment", step, slice(*ends[at : at + 2])) for at in range(len(shares))]
    whole = rng.row_uniforms(seed, "augment", step, slice(0, ends[-1]))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    for other in (
        rng.row_uniforms(seed, "augment", step + 1, slice(0, ends[-1])),
        rng.row_uniforms(seed + 1, "augment", step, slice(0, ends[-1])),
    ):
        assert not (other == whole).any()


# Each image's augmentations, by torchvision


def by_torchvision(recipe: Recipe, image: Tensor, u: np.ndarray, flip: bool) -> Tensor:
    """uint8 [h, w, 3] -> [3, s, s] float64, by the augmentations' parameters for this row of draws."""
    ours, (height, width) = recipe.augment, image.shape[:2]
    chw = image.permute(2, 0, 1)
    if ours.crop:
        top, left = (math.floor(x * (2 * ours.crop + 1)) for x in u[0:2])
        chw = tv.crop(tv.pad(chw, [ours.crop] * 4, padding_mode="reflect"), top, left, height, width)
    if flip:
        chw = tv.hflip(chw)
    if ours.trivial:
        name, magnitude = OPERATIONS[math.floor(u[14] * 14)], math.floor(u[15] * MAGNITUDES)
        chw = trivial(chw.permute(1, 2, 0)[None], name, magnitude, u[16] < 0.5)[0].permute(2, 0, 1)
    if ours.cutout:
        top, left = math.floor(u[3] * height) - ours.cutout // 2, math.floor(u[4] * width) - ours.cutout // 2
        chw = blanked(chw, top, left, ours.cutout, ours.cutout)
    if u[5] < ours.erase:
        area = height * width * (0.02 + u[6] * 0.31)
        aspect = 0.3 * (3.3 / 0.3) ** u[7]
        tall, wide = (min(max(round(math.sqrt(x)), 1), y) for x, y in ((area * aspect, height), (area / aspect, width)))
        chw = blanked(chw, math.floor(u[8] * (height - tall + 1)), math.floor(u[9] * (width - wide + 1)), tall, wide)
    size = recipe.data.image_size
    if chw.shape[1:] != (size, size):
        shrinks = size < max(height, width)
        chw = tv.resize(chw.double(), [size, size], InterpolationMode.BICUBIC, antialias=shrinks).clamp(0, 255)
    return tv.normalize(chw.double() / 255, list(MEAN), list(STD))


def blanked(chw: Tensor, top: int, left: int, tall: int, wide: int) -> Tensor:
    """torchvision's erase, of the part of a box that lies within the image."""
    height, width = chw.shape[1:]
    bottom, right = min(top + tall, height), min(left + wide, width)
    top, left = max(top, 0), max(left, 0)
    fill = torch.tensor(MEAN).mul(255).round().to(torch.uint8)[:, None, None]
    return tv.erase(chw, top, left, bottom - top, right - left, fill)


@settings(some, max_examples=60)
@given(runs(EVERYTHING), st.integers(5, 15), st.integers(0, 4), st.integers(0, 9))
def test_an_image_is_what_torchvision_makes_of_the_same_draws(run: Run, height: int, more: int, step: int) -> None:
    width = height + 2 * more  # both even or both odd, as test_trivial_augment says
    recipe = replace(run.recipe, augment=replace(run.recipe.augment, mixup_alpha=0.0, cutmix_alpha=0.0))
    images = noise(run.images, height, width)
    ours = batches_of(recipe, images, run.world, run.world - 1, plain=False)
    rows = ours.plan.rows(run.world - 1)
    indices, epochs = ours.plan.sample_indices(step, rows)
    table = rng.row_uniforms(recipe.seed, "augment", step, rows)
    coins = rng.bits(recipe.seed, "flip", run.images)
    flips = {
        "none": np.zeros(len(indices)),
        "random": table[:, 2] < 0.5,
        "alternating": (coins[indices] + epochs) % 2,
    }[recipe.augment.flip]
    expected = [by_torchvision(recipe, images[i], u, bool(f)) for i, u, f in zip(indices, table, flips, strict=True)]
    found = torch.cat([inputs for inputs, _ in ours.step(step)])
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-9)


# Labels of mixed images


@some
@given(runs(UNSEEN), st.floats(0.05, 4), st.integers(0, 9))
def test_cutmix_labels_are_the_areas_that_can_be_counted(run: Run, alpha: float, step: int) -> None:
    run = replace(run, recipe=replace(run.recipe, augment=replace(run.recipe.augment, cutmix_alpha=alpha)))
    inputs, targets = fed(run, plain_images(run.images), step)
    values = (inputs[:, 0] * 255).round().long()
    counted = torch.stack([(values == image).double().mean((1, 2)) for image in range(run.images)], 1)
    torch.testing.assert_close(targets, counted, rtol=0, atol=1e-12)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets), dtype=torch.float64), rtol=0, atol=1e-12)


@some
@given(runs(UNSEEN), st.floats(0.05, 4), st.sampled_from([0.0, 1.0]), st.integers(0, 9))
def test_mixed_labels_sum_to_one_and_give_the_mean_of_the_pixels(
    run: Run, mixup: float, cutmix: float, step: int
) -> None:
    """An image's value is its class, so that the labels' mean is the pixels'; a row holds its pair's classes only."""
    run = replace(
        run, recipe=replace(run.recipe, augment=replace(run.recipe.augment, mixup_alpha=mixup, cutmix_alpha=cutmix))
    )
    inputs, targets = fed(run, plain_images(run.images), step)
    values = torch.arange(run.images, dtype=torch.float64)
    torch.testing.assert_close(targets @ values, inputs.mean((1, 2, 3)) * 255, rtol=0, atol=1e-9)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets), dtype=torch.float64), rtol=0, atol=1e-12)
    indices = Plan(run.recipe, run.images, 1).order(step, slice(0, run.recipe.batch_size))[0].reshape(-1, 2)
    for row, target in enumerate(targets):
        assert set(target.nonzero().flatten().tolist()) <= set(indices[row // 2].tolist())


# Scores


@some
@given(st.integers(1, 300), st.integers(1, 6))
def test_every_image_is_scored_exactly_once_and_in_order_on_any_number_of_ranks(images: int, world: int) -> None:
    pixels = torch.arange(images, dtype=torch.int32)[:, None].expand(-1, 3 * 8 * 8).reshape(images, 8, 8, 3)
    split = ImageDataset(pixels, torch.arange(images), np.arange(images))
    form = Preprocess(parse({"data": {"image_size": 8}}).data, torch.zeros(3).double(), torch.ones(3).double())
    gathered: list[Tensor] = []

    def rank_of(rank: int) -> Any:
        def gather(mine: Tensor) -> Tensor:
            gathered.append(mine)
            return torch.cat(gathered)

        return SimpleNamespace(rank=rank, size=world, gather=gather)

    class Reads(torch.nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            assert not self.training
            return inputs[:, :1, 0, 0] * 255

    for rank in range(world):  # the last one has gathered all
        predictions = predict(rank_of(rank), Reads(), split, form)
    assert len({len(part) for part in gathered}) == 1, "ranks gather shapes that differ"
    torch.testing.assert_close(predictions.logits[:, 0].round().long(), split.labels, rtol=0, atol=0)

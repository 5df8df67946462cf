"""Properties of the batches of every valid recipe, on any number of ranks (Hypothesis draws recipes and shapes)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from augmentations import NOTHING, VALUES
from hypothesis import given, settings
from hypothesis import strategies as st
from test_color import COLOR_FUNCTIONS, ORDERS
from test_trivial_augment import RAND, torchvision_operation
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from resnet_cifar import rng
from resnet_cifar.config.schema import Augment, Recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.loader import Loader
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sampling import sample_indices
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
    world_size: int


@st.composite
def runs(draw: st.DrawFn, augment: st.SearchStrategy[Augment]) -> Run:
    """Shares of whole ghost batches and pairs, cut into whole micro-batches; or one ghost batch across all shares."""
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


AUGMENTATIONS = {name: st.sampled_from(values) for name, values in VALUES.items()}
ALL_OFF = st.just(Augment(**NOTHING))
# What leaves an image of one color as it is.
CROP_AND_FLIP = st.builds(
    Augment,
    **{
        name: AUGMENTATIONS[name] if name in ("crop_padding", "flip") else st.just(off) for name, off in NOTHING.items()
    },
)
ANY = st.builds(Augment, **AUGMENTATIONS)


def plain_images(count: int) -> Tensor:
    """Image i has the value i everywhere."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 8, 8, 3).contiguous()


def noise(count: int, height: int, width: int) -> Tensor:
    words = rng.words(0, "test images", count=count * height * width * 3)
    return torch.from_numpy((words >> np.uint64(56)).astype(np.uint8)).view(count, height, width, 3)


def loader_of(recipe: Recipe, images: Tensor, world_size: int = 1, rank: int = 0, plain: bool = True) -> Loader:
    """Every image is a class of its own; `plain`: pixels stay in 0..1. In float64, so that areas are exact."""
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (MEAN, STD)
    preprocess = Preprocess(recipe.data, *(torch.tensor(values, dtype=torch.float64) for values in (mean, std)))
    data = ImageDataset(images, torch.arange(len(images)), np.arange(len(images)))
    return Loader(recipe, data, len(images), preprocess, Plan(recipe, len(images), world_size).rows(rank))


def global_batch(run: Run, images: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """What all ranks feed their models in a step, one rank after the other."""
    loaders = (loader_of(run.recipe, images, run.world_size, rank) for rank in range(run.world_size))
    micro_batch = run.recipe.micro_batch
    parts = (part for loader in loaders for part in loader.batch(step, micro_batch=micro_batch))
    inputs, targets = zip(*parts, strict=True)
    assert {len(part) for part in inputs} == {micro_batch or run.recipe.batch_size // run.world_size}
    return torch.cat(inputs), torch.cat(targets)


@some
@given(runs(ALL_OFF))
def test_every_image_is_used_exactly_once_per_epoch_on_any_number_of_ranks(run: Run) -> None:
    images = plain_images(run.images)
    steps = Plan(run.recipe, run.images, run.world_size).steps
    inputs, targets = (
        torch.cat(parts) for parts in zip(*(global_batch(run, images, step) for step in range(steps)), strict=True)
    )
    seen = (inputs[:, 0, 0, 0] * 255).round().long()
    assert len(seen) == steps * run.recipe.batch_size, "every step is full"
    torch.testing.assert_close(targets.argmax(1), seen, rtol=0, atol=0)
    for epoch in seen.split(run.images):
        assert len(epoch.unique()) == len(epoch), "an image came twice in an epoch"


@some
@given(runs(ANY), st.integers(0, 30))
def test_the_global_batch_does_not_depend_on_ranks_and_micro_batches(run: Run, step: int) -> None:
    images = noise(run.images, 9, 8)
    alone = Run(replace(run.recipe, micro_batch=0), run.images, 1)
    torch.testing.assert_close(global_batch(run, images, step), global_batch(alone, images, step), rtol=0, atol=0)


@some
@given(runs(ANY), st.integers(0, 5))
def test_a_run_resumed_at_any_step_gets_the_same_batches(run: Run, start: int) -> None:
    images = noise(run.images, 9, 8)
    whole, resumed = (loader_of(run.recipe, images, run.world_size, run.world_size - 1) for _ in range(2))
    expected = [list(whole.batch(step)) for step in range(start + 3)][start:]
    for step, batches in enumerate(expected, start=start):
        for found, batch in zip(resumed.batch(step), batches, strict=True):
            torch.testing.assert_close(found, batch, rtol=0, atol=0)


@some
@given(st.integers(0, 2**63), st.integers(0, 2**40), st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_a_rows_random_numbers_do_not_depend_on_how_rows_are_divided(seed: int, step: int, shares: list[int]) -> None:
    ends = np.cumsum([0, *shares]).tolist()
    parts = [rng.row_uniforms(seed, "augment", step, slice(*ends[at : at + 2])) for at in range(len(shares))]
    whole = rng.row_uniforms(seed, "augment", step, slice(0, ends[-1]))
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    for other in (
        rng.row_uniforms(seed, "augment", step + 1, slice(0, ends[-1])),
        rng.row_uniforms(seed + 1, "augment", step, slice(0, ends[-1])),
    ):
        assert not (other == whole).any()


# Single-image augmentations against torchvision


def by_torchvision(recipe: Recipe, image: Tensor, u: np.ndarray, flip: bool) -> Tensor:
    """uint8 [h, w, 3] -> [3, s, s] float64, augmented by torchvision, with the parameters of these random numbers."""
    ours, (height, width) = recipe.augment, image.shape[:2]
    chw = image.permute(2, 0, 1)
    if ours.crop_padding:
        top, left = (math.floor(x * (2 * ours.crop_padding + 1)) for x in u[0:2])
        chw = tv.crop(tv.pad(chw, [ours.crop_padding] * 4, padding_mode="reflect"), top, left, height, width)
    if flip:
        chw = tv.hflip(chw)
    if ours.trivial_augment:
        name, magnitude = OPERATIONS[math.floor(u[14] * 14)], math.floor(u[15] * MAGNITUDES)
        chw = torchvision_operation(chw.permute(1, 2, 0)[None], name, magnitude, u[16] < 0.5)[0].permute(2, 0, 1)
    if magnitude := ours.rand_augment:
        for kind, sign in (u[26:28], u[28:30]):
            image, name = chw.permute(1, 2, 0)[None], OPERATIONS[math.floor(kind * 14)]
            chw = torchvision_operation(image, name, magnitude, sign < 0.5, RAND)[0].permute(2, 0, 1)
    if strength := ours.color_jitter:
        factors = [max(0, 1 - strength) + x * (1 + strength - max(0, 1 - strength)) for x in u[21:24].tolist()]
        for kind in ORDERS[math.floor(u[24] * 6)]:
            chw = COLOR_FUNCTIONS[kind](chw, factors[kind])
    if u[25] < ours.grayscale:
        chw = tv.rgb_to_grayscale(chw, num_output_channels=3)
    if ours.cutout:
        top, left = math.floor(u[3] * height) - ours.cutout // 2, math.floor(u[4] * width) - ours.cutout // 2
        chw = blanked(chw, top, left, ours.cutout, ours.cutout)
    if u[5] < ours.random_erasing:
        area = height * width * (0.02 + u[6] * 0.31)
        aspect = 0.3 * (3.3 / 0.3) ** u[7]
        tall, wide = (min(max(round(math.sqrt(x)), 1), y) for x, y in ((area * aspect, height), (area / aspect, width)))
        chw = blanked(chw, math.floor(u[8] * (height - tall + 1)), math.floor(u[9] * (width - wide + 1)), tall, wide)
    size = recipe.data.image_size
    if smallest := ours.random_resized_crop:
        area = height * width * (smallest + u[17] * (1 - smallest))
        aspect = 0.75 * (16 / 9) ** u[18]
        tall, wide = (min(max(round(math.sqrt(x)), 1), y) for x, y in ((area / aspect, height), (area * aspect, width)))
        top, left = math.floor(u[19] * (height - tall + 1)), math.floor(u[20] * (width - wide + 1))
        box = top, left, tall, wide
        chw = tv.resized_crop(chw.double(), *box, [size, size], InterpolationMode.BICUBIC).clamp(0, 255)
    elif chw.shape[1:] != (size, size):
        shrinks = size < max(height, width)
        chw = tv.resize(chw.double(), [size, size], InterpolationMode.BICUBIC, antialias=shrinks).clamp(0, 255)
    return tv.normalize(chw.double() / 255, list(MEAN), list(STD))


def blanked(chw: Tensor, top: int, left: int, tall: int, wide: int) -> Tensor:
    """torchvision's erase, of the part of a box that lies inside the image."""
    height, width = chw.shape[1:]
    bottom, right = min(top + tall, height), min(left + wide, width)
    top, left = max(top, 0), max(left, 0)
    fill = torch.tensor(MEAN).mul(255).round().to(torch.uint8)[:, None, None]
    return tv.erase(chw, top, left, bottom - top, right - left, fill)


@settings(some, max_examples=60)
@given(runs(ANY), st.integers(5, 15), st.integers(0, 4), st.integers(0, 9))
def test_an_augmented_image_equals_torchvisions_for_the_same_random_numbers(
    run: Run, height: int, more: int, step: int
) -> None:
    width = height + 2 * more  # both even or both odd, as test_trivial_augment says
    recipe = replace(run.recipe, augment=replace(run.recipe.augment, mixup_alpha=0.0, cutmix_alpha=0.0))
    images = noise(run.images, height, width)
    ours = loader_of(recipe, images, run.world_size, run.world_size - 1, plain=False)
    rows = ours.rows
    indices, epochs = sample_indices(recipe.seed, run.images, recipe.batch_size, step, rows)
    table = rng.row_uniforms(recipe.seed, "augment", step, rows)
    coins = rng.bits(recipe.seed, "flip", run.images)
    flips = {
        "none": np.zeros(len(indices)),
        "random": table[:, 2] < 0.5,
        "alternating": (coins[indices] + epochs) % 2,
    }[recipe.augment.flip]
    expected = [by_torchvision(recipe, images[i], u, bool(f)) for i, u, f in zip(indices, table, flips, strict=True)]
    found = torch.cat([inputs for inputs, _ in ours.batch(step)])
    exact = 1e-9 if not recipe.augment.random_resized_crop else 1e-4  # torch's weights are float32 where it antialiases
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=exact)


# Labels of mixed images


@some
@given(runs(CROP_AND_FLIP), st.floats(0.05, 4), st.integers(0, 9))
def test_cutmix_labels_equal_the_counted_areas(run: Run, alpha: float, step: int) -> None:
    run = replace(run, recipe=replace(run.recipe, augment=replace(run.recipe.augment, cutmix_alpha=alpha)))
    inputs, targets = global_batch(run, plain_images(run.images), step)
    values = (inputs[:, 0] * 255).round().long()
    counted = torch.stack([(values == image).double().mean((1, 2)) for image in range(run.images)], 1)
    torch.testing.assert_close(targets, counted, rtol=0, atol=1e-12)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets), dtype=torch.float64), rtol=0, atol=1e-12)


@some
@given(runs(CROP_AND_FLIP), st.floats(0.05, 4), st.sampled_from([0.0, 1.0]), st.integers(0, 9))
def test_mixed_labels_sum_to_one_and_match_the_mean_pixel(run: Run, mixup: float, cutmix: float, step: int) -> None:
    """An image's value is its class, so that the labels' mean is the pixels'; a row holds its pair's classes only."""
    run = replace(
        run, recipe=replace(run.recipe, augment=replace(run.recipe.augment, mixup_alpha=mixup, cutmix_alpha=cutmix))
    )
    inputs, targets = global_batch(run, plain_images(run.images), step)
    values = torch.arange(run.images, dtype=torch.float64)
    torch.testing.assert_close(targets @ values, inputs.mean((1, 2, 3)) * 255, rtol=0, atol=1e-9)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(targets), dtype=torch.float64), rtol=0, atol=1e-12)
    seed, batch_size = run.recipe.seed, run.recipe.batch_size
    indices, _ = sample_indices(seed, run.images, batch_size, step, slice(0, batch_size))
    for row, target in enumerate(targets):
        assert set(target.nonzero().flatten().tolist()) <= set(indices[row - row % 2 :][:2].tolist())


# Evaluation


@some
@given(st.integers(1, 300), st.integers(1, 6))
def test_every_image_is_evaluated_exactly_once_and_in_order_on_any_number_of_ranks(images: int, world: int) -> None:
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

    for rank in range(world):  # the last rank has gathered everything
        predictions = predict(rank_of(rank), Reads(), split, form)
    assert len({len(part) for part in gathered}) == 1, "ranks gather shapes that differ"
    torch.testing.assert_close(predictions.logits[:, 0].round().long(), split.labels, rtol=0, atol=0)

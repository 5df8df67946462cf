"""From step k on, this rank's augmented batches: order, draws, images and augmentations put together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_cifar.data import augment, draws
from resnet_cifar.data.plan import Plan
from resnet_cifar.data.resident import Asked, ImageSet, to_device
from resnet_cifar.data.trivial_augment import trivial_augment
from resnet_cifar.recipe import Augment, Data, Mistake, Recipe

# The columns of a row's random numbers. A new augmentation takes the next free ones.
_CROP, _FLIP, _CUTOUT, _ERASE = slice(0, 2), 2, slice(3, 5), slice(5, 10)
_MIX_KIND, _LAMBDA, _BOX = 10, 11, slice(12, 14)
_TRIVIAL = slice(14, 17)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class InputFormat:
    """What the network sees. mean and std: [3] in 0..1, on the device, in the type of the network's input."""

    data: Data
    mean: Tensor
    std: Tensor

    def __call__(self, images: Tensor, size: int | None = None) -> Tensor:
        """uint8 [n, h, w, 3] -> normalised [n, 3, size, size], channels_last; `size` is data.image_size by default."""
        return augment.to_input(images, size or self.data.image_size, self.data.interpolation, self.mean, self.std)


@dataclass(frozen=True)
class _Rows:
    """Rows of a step, on the device: images and labels, flip parity [n], uniforms [n, COLUMNS], lambdas [n / 2].

    `image_size`: the side at which the network sees them.
    """

    asked: Asked
    parity: Tensor
    uniforms: Tensor
    lambdas: Tensor
    image_size: int


def check_crop(recipe: Recipe, images: ImageSet) -> None:
    """Raises Mistake where the random crop reflects more than the images have."""
    side = min(images.size)
    if recipe.augment.crop >= side and not recipe.data.overfit:
        raise Mistake(f"augment.crop {recipe.augment.crop} reflects more than images of {side} pixels have: lower it")


class Batches:
    """Rank `rank`'s batches of `plan`, from `images`. Holds no state: any step can be asked for."""

    def __init__(self, plan: Plan, images: ImageSet, classes: int, input_format: InputFormat, rank: int) -> None:
        self.plan, self.images, self.classes, self.format = plan, images, classes, input_format
        self.settings = Augment(0, "none") if plan.recipe.data.overfit else plan.recipe.augment
        self.rank = rank
        self.device = images.device
        seed = plan.recipe.seed
        self._coins = draws.bits(seed, "flip", len(images))
        self._fill = (255 * input_format.mean).round().to(torch.uint8)

    def steps(self, start: int = 0, end: int | None = None) -> Iterator[Iterator[Batch]]:
        """Each step's micro-batches from step `start` to `end` (or the run's); the host's part is made a step ahead."""
        end = self.plan.steps if end is None else end
        ahead = self._rows(start) if start < end else None
        for step in range(start, end):
            rows, ahead = ahead, self._rows(step + 1) if step + 1 < end else None
            yield self._micro_batches(rows)

    def step(self, step: int) -> Iterator[Batch]:
        """The micro-batches of one step: (inputs [n, 3, s, s], targets [n, classes] summing to one)."""
        return self._micro_batches(self._rows(step))

    def _micro_batches(self, rows: _Rows) -> Iterator[Batch]:
        return (self._batch(rows, part) for part in self._parts())

    def _parts(self) -> list[slice]:
        size = self.plan.micro_batch
        return [slice(start, start + size) for start in range(0, self.plan.share, size)]

    def _rows(self, step: int) -> _Rows:
        rows = self.plan.rows(self.rank)
        indices, epochs = self.plan.order(step, rows)
        uniforms = draws.table(self.plan.recipe.seed, "augment", step, rows)
        if self.settings.flip == "alternating":
            parity = (self._coins[indices] + epochs) % 2
        else:
            parity = (uniforms[:, _FLIP] < 0.5) & (self.settings.flip == "random")
        # A pair draws once, with the numbers of its first row.
        kind, uniform = uniforms[::2, _MIX_KIND], uniforms[::2, _LAMBDA]
        lambdas = np.where(kind < self._mixup_share, self._beta(uniform, "mixup"), self._beta(uniform, "cutmix"))
        arrays = (to_device(array, self.device) for array in (parity.astype(np.uint8), uniforms, lambdas))
        return _Rows(self.images.ask(indices), *arrays, image_size=self.plan.image_size(step))

    @property
    def _mixup_share(self) -> float:
        """The probability that a pair takes Mixup and not CutMix."""
        both = self.settings.mixup > 0 and self.settings.cutmix > 0
        return 0.5 if both else float(self.settings.mixup > 0)

    def _beta(self, uniform: np.ndarray, name: str) -> np.ndarray:
        alpha = getattr(self.settings, name)
        return draws.beta(uniform, alpha) if alpha else np.ones_like(uniform)

    def _batch(self, rows: _Rows, part: slice) -> Batch:
        settings, u = self.settings, rows.uniforms[part]
        images = augment.crop_and_flip(rows.asked.images(part), u[:, _CROP], rows.parity[part], settings.crop)
        if settings.trivial:
            images = trivial_augment(images, u[:, _TRIVIAL])
        if settings.cutout:
            images = augment.cutout(images, u[:, _CUTOUT], settings.cutout, self._fill)
        if settings.erase:
            images = augment.erase(images, u[:, _ERASE], settings.erase, self._fill)
        inputs = self.format(images, rows.image_size)
        targets = F.one_hot(rows.asked.labels(part), self.classes).to(inputs.dtype)
        if settings.mixup or settings.cutmix:
            lambdas = rows.lambdas[part.start // 2 : part.stop // 2].to(inputs.dtype)
            inputs, targets = augment.mix(inputs, targets, self._keep(lambdas, u[::2], inputs.shape[-1]))
        return inputs, targets

    def _keep(self, lambdas: Tensor, u: Tensor, size: int) -> Tensor:
        """The share that each pixel of each pair keeps. lambdas [pairs], u [pairs, COLUMNS] -> as `mix` takes it."""
        settings = self.settings
        blend = augment.mixup_share(lambdas)
        if not settings.cutmix:  # without a map of the size of the images
            return blend
        patch = augment.cutmix_share(lambdas, u[:, _BOX], size)
        if not settings.mixup:
            return patch
        return torch.where((u[:, _MIX_KIND] < self._mixup_share)[:, None, None, None], blend, patch)

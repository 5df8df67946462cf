"""Augmented training batches: the sampling order, random numbers, images and augmentations combined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_cifar import rng
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Augment, Recipe
from resnet_cifar.data import mixing, transforms
from resnet_cifar.data.image_dataset import ImageDataset, PendingBatch, to_device
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.resized_crop import ASPECTS, content_boxes, random_boxes
from resnet_cifar.data.sampling import balanced_order, sample_indices
from resnet_cifar.data.sources.image_io import BORDER

# Columns of a row's random numbers (transforms.AUGMENTATIONS has the others). Pairs use the numbers of their first row.
_CROP, _FLIP = slice(0, 2), 2
_MIX_KIND, _LAMBDA, _BOX, _RESIZED_CROP = 10, 11, slice(12, 14), slice(17, 21)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Rows:
    """Rows of a step, on the device: images and labels, flips [n], uniforms [n, COLUMNS], lambdas [n / 2]."""

    pending: PendingBatch
    flips: Tensor
    uniforms: Tensor
    lambdas: Tensor


def check_crop_padding(recipe: Recipe, images: ImageDataset) -> None:
    """Raises UserError if the padding is not smaller than the images."""
    side, padding = min(images.size), recipe.augment.crop_padding
    if padding >= side and not recipe.data.overfit_images:
        raise UserError(f"augment.crop_padding {padding} must be smaller than the images of {side} pixels: lower it")


class Loader:
    """Batches of the rows `rows` of every global batch (a rank's share). Steps can be requested in any order.

    The random numbers and images of the next step are prepared and prefetched, so that neither host nor device waits
    for them.
    """

    def __init__(self, recipe: Recipe, images: ImageDataset, classes: int, preprocess: Preprocess, rows: slice) -> None:
        self.recipe, self.images, self.classes, self.preprocess, self.rows = recipe, images, classes, preprocess, rows
        self.settings = Augment(crop_padding=0, flip="none") if recipe.data.overfit_images else recipe.augment
        self._balanced = balanced_order(recipe, images.labels.cpu().numpy())
        self._coins = rng.bits(recipe.seed, "flip", len(images))
        self._fill = (255 * preprocess.mean).round().to(torch.uint8)
        is_padded = preprocess.decoding.mode == "pad"
        self._border = torch.tensor(BORDER, dtype=torch.uint8, device=images.device) if is_padded else None
        self._augmentations = [each for each in transforms.AUGMENTATIONS if getattr(self.settings, each.field)]
        self._ahead: tuple[int, _Rows] | None = None

    def batch(self, step: int, image_size: int = 0, micro_batch: int = 0) -> Iterator[Batch]:
        """The micro-batches of `step`: (inputs [n, 3, s, s], targets [n, classes], whose rows sum to one).

        `image_size` 0 is data.image_size; `micro_batch` 0 is one micro-batch of all rows.
        """
        rows = self._ahead[1] if self._ahead and self._ahead[0] == step else self._draw(step)
        self._ahead = step + 1, self._draw(step + 1)
        n = self.rows.stop - self.rows.start
        parts = [slice(start, start + (micro_batch or n)) for start in range(0, n, micro_batch or n)]
        return (self._augment(rows, part, image_size) for part in parts)

    def _draw(self, step: int) -> _Rows:
        seed, settings = self.recipe.seed, self.settings
        indices, uses = sample_indices(seed, len(self.images), self.recipe.batch_size, step, self.rows, self._balanced)
        uniforms = rng.row_uniforms(seed, "augment", step, self.rows)
        if settings.flip == "alternating":
            flips = (self._coins[indices] + uses) % 2
        else:
            flips = (uniforms[:, _FLIP] < 0.5) & (settings.flip == "random")
        kind, uniform = uniforms[::2, _MIX_KIND], uniforms[::2, _LAMBDA]
        mixup, cutmix = (rng.beta(uniform, alpha) for alpha in (settings.mixup_alpha, settings.cutmix_alpha))
        lambdas = np.where(kind < self._mixup_probability, mixup, cutmix)
        arrays = (to_device(array, self.images.device) for array in (flips.astype(np.uint8), uniforms, lambdas))
        return _Rows(self.images.prefetch(indices), *arrays)

    @property
    def _mixup_probability(self) -> float:
        """The probability that a pair is mixed by Mixup instead of CutMix."""
        both = self.settings.mixup_alpha > 0 and self.settings.cutmix_alpha > 0
        return 0.5 if both else float(self.settings.mixup_alpha > 0)

    def _augment(self, rows: _Rows, part: slice, image_size: int) -> Batch:
        settings, u = self.settings, rows.uniforms[part]
        images = rows.pending.images(part)
        images = transforms.crop_and_flip(images, u[:, _CROP], rows.flips[part], settings.crop_padding)
        boxes = self._crop_boxes(images, u) if settings.random_resized_crop else None
        for each in self._augmentations:
            images = each.apply(images, u[:, each.columns], getattr(settings, each.field), self._fill)
        inputs = self.preprocess(images, image_size, boxes)
        targets = F.one_hot(rows.pending.labels(part), self.classes).to(inputs.dtype)
        if settings.mixes:
            lambdas = rows.lambdas[part.start // 2 : part.stop // 2].to(inputs.dtype)
            inputs, targets = mixing.mix(inputs, targets, self._shares(lambdas, u[::2], inputs.shape[-1]))
        return inputs, targets

    def _crop_boxes(self, images: Tensor, u: Tensor) -> Tensor:
        """Random boxes in images that have no other augmentation yet; not in the border of those that are padded."""
        areas, u = (self.settings.random_resized_crop, 1.0), u[:, _RESIZED_CROP]
        if self._border is None:
            return random_boxes(u, areas, ASPECTS, *images.shape[1:3])
        content = content_boxes(images, self._border)
        boxes = random_boxes(u, areas, ASPECTS, content[:, 2], content[:, 3])
        return torch.cat([boxes[:, :2] + content[:, :2], boxes[:, 2:]], dim=1)

    def _shares(self, lambdas: Tensor, u: Tensor, size: int) -> Tensor:
        """The share that each pixel of each pair keeps, for `mix`. lambdas [pairs], u [pairs, COLUMNS]."""
        mixup = mixing.mixup_share(lambdas)
        if not self.settings.cutmix_alpha:  # no mask of the images' size is needed
            return mixup
        cutmix = mixing.cutmix_share(lambdas, u[:, _BOX], size)
        if not self.settings.mixup_alpha:
            return cutmix
        return torch.where((u[:, _MIX_KIND] < self._mixup_probability)[:, None, None, None], mixup, cutmix)

"""What training makes of an image in its first epochs: through the real batches, with the recipe's own draws.

An image's place in the stream of an epoch names its step and row. Augmentations do not depend on the number of
processes, so one pair of rows (Mixup's and CutMix's unit) is asked for as if it were all of one process's share.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from resnet_cifar import model as models
from resnet_cifar.data.batches import Batches, InputFormat, check_crop
from resnet_cifar.data.plan import Plan
from resnet_cifar.data.store import ImageData
from resnet_cifar.recipe import Recipe

_NAMED = 0.005  # a label's smallest share that is written


@dataclass(frozen=True)
class View:
    """One image in one epoch, as the network sees it but for the normalisation: uint8 [side, side, 3].

    `shares`: (class, share of the label), the largest first.
    """

    epoch: int
    step: int
    image: np.ndarray
    shares: list[tuple[int, float]]


class Training:
    """The recipe's training, asked for single images."""

    def __init__(self, data: ImageData, recipe: Recipe) -> None:
        check_crop(recipe, data.train)
        with torch.device("meta"):  # the model without its numbers tells how its inputs are normalised
            model = models.build(recipe, len(data.classes), pretrained=False)
        self.mean, self.std = models.normalisation(model, recipe)
        # BatchNorm's groups and micro-batches change no image, and would keep a share from being two rows.
        plain = dataclasses.replace(recipe.model, norm_batch=None)
        recipe = dataclasses.replace(recipe, model=plain, micro_batch=0)
        self.plan = Plan(recipe, len(data.train), world=recipe.batch_size // 2)
        self._data = data
        self._format = InputFormat(recipe.data, torch.tensor(self.mean), torch.tensor(self.std))

    def views(self, row: int, epochs: int) -> list[View]:
        """What training makes of training image `row` in each of the first `epochs` epochs."""
        return [self._view(row, epoch) for epoch in range(epochs)]

    def _view(self, row: int, epoch: int) -> View:
        start = epoch * self.plan.images
        indices, _ = self.plan.order(0, slice(start, start + self.plan.images))
        step, position = divmod(start + int(np.flatnonzero(indices == row)[0]), self.plan.recipe.batch_size)
        rank, inside = divmod(position, 2)
        batches = Batches(self.plan, self._data.train, len(self._data.classes), self._format, rank)
        [(inputs, targets)] = batches.step(step)
        pixels = inputs[inside].permute(1, 2, 0) * self._format.std + self._format.mean
        shares = sorted(enumerate(targets[inside].tolist()), key=lambda pair: -pair[1])
        named = [(label, share) for label, share in shares if share >= _NAMED]
        return View(epoch, step, (255 * pixels).round().clamp(0, 255).to(torch.uint8).numpy(), named)

"""Augmented versions of images the first times they are used, made by the real loader with the recipe's random numbers.

The position of an image in the stream gives its step and row. Augmentations do not depend on the number of
processes, so one pair of rows (the unit of Mixup and CutMix) is loaded as if it were the whole share of a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from resnet_cifar.config.schema import Recipe
from resnet_cifar.data.loader import Loader, check_crop_padding
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.data.preprocess import Preprocess
from resnet_cifar.data.sampling import balanced_order, position_of
from resnet_cifar.models.factory import create_model, normalization

_NAMED = 0.005  # smallest share of a label that is shown


@dataclass(frozen=True)
class View:
    """One image in one epoch, as the network sees it before normalization: uint8 [side, side, 3].

    `shares`: (class, share of the label), largest first.
    """

    epoch: int
    step: int
    image: np.ndarray
    shares: list[tuple[int, float]]


class Training:
    """Loads single training images as the recipe does; `image_size(step)`: the inputs' size at an update, pixels."""

    def __init__(self, data: ImageData, recipe: Recipe, image_size: Callable[[int], int]) -> None:
        check_crop_padding(recipe, data.train)
        with torch.device("meta"):  # the normalization needs the model's config, not its weights
            model = create_model(recipe, len(data.classes), pretrained=False)
        self.mean, self.std = normalization(model, recipe)
        self._recipe, self._data, self._image_size = recipe, data, image_size
        self._balanced = balanced_order(recipe, data.train.labels.cpu().numpy())
        self._format = Preprocess(recipe.data, torch.tensor(self.mean), torch.tensor(self.std), data.decoding)

    def views(self, row: int, uses: int) -> list[View]:
        """The augmented versions of training image `row` the first `uses` times it is used: once per epoch, unless
        data.sampling is balanced."""
        return [self._view(row, use) for use in range(uses)]

    def _view(self, row: int, use: int) -> View:
        recipe, images = self._recipe, len(self._data.train)
        place = position_of(recipe.seed, images, row, use, self._balanced)
        step, position = divmod(place, recipe.batch_size)
        inside = position % 2
        pair = slice(position - inside, position - inside + 2)
        loader = Loader(recipe, self._data.train, len(self._data.classes), self._format, pair)
        [(inputs, targets)] = loader.batch(step, self._image_size(step))
        pixels = inputs[inside].permute(1, 2, 0) * self._format.std + self._format.mean
        shares = sorted(enumerate(targets[inside].tolist()), key=lambda pair: -pair[1])
        named = [(label, share) for label, share in shares if share >= _NAMED]
        return View(place // images, step, (255 * pixels).round().clamp(0, 255).to(torch.uint8).numpy(), named)

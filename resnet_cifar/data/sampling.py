"""Which training images make step k: one stream of epochs, each in an order of its own, cut into full batches.

There is no sampler state. The order is a function of (seed, epoch) and of the images' classes, so resuming at step k
costs nothing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from resnet_cifar import rng
from resnet_cifar.config.schema import Recipe

BN_IMAGES = 256, 2048  # minimum and maximum number of images for precise BatchNorm statistics


class BalancedOrder:
    """The stream of `data.sampling balanced`: an epoch is as long as usual, and every class has an equal share of it.

    The run is a sequence of slots, an epoch after the other. Slot s belongs to class s modulo the number of classes, so
    shares differ by at most one image. A class fills its slots with one permutation of its images after another, each a
    function of (seed, class, its number), so its images are used equally often, across epochs too. The slots of an
    epoch are then shuffled as the images of an epoch are under `data.sampling uniform`.
    """

    def __init__(self, seed: int, labels: np.ndarray) -> None:
        self._seed, self._images = seed, len(labels)
        by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
        self._classes = [(label, members) for label, members in enumerate(by_class) if len(members)]
        self.epoch = lru_cache(maxsize=2)(self._fill_slots)

    def _fill_slots(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The slots of an epoch before they are shuffled: (image indices, earlier uses of each), int64 [images]."""
        first, count = epoch * self._images, len(self._classes)
        indices, uses = np.empty((2, self._images), np.int64)
        for place, (label, members) in enumerate(self._classes):
            start, stop = (-(-(end - place) // count) for end in (first, first + self._images))  # of the class's slots
            size = len(members)
            which = range(start // size, -(-stop // size))
            order = rng.permutations(self._seed, "class_order", label, size, which).ravel()
            mine = slice(start * count + place - first, None, count)
            indices[mine] = members[order[start - which.start * size :][: stop - start]]
            uses[mine] = np.arange(start, stop) // size
        return indices, uses

    def slot_of(self, image: int, use: int) -> int:
        """The slot in which `image` is used after `use` earlier uses, counted from the start of the run."""
        for place, (label, members) in enumerate(self._classes):
            if image in members:
                [order] = rng.permutations(self._seed, "class_order", label, len(members), range(use, use + 1))
                turn = int(np.flatnonzero(members[order] == image)[0])
                return (use * len(members) + turn) * len(self._classes) + place
        raise IndexError(image)


def balanced_order(recipe: Recipe, labels: np.ndarray) -> BalancedOrder | None:
    """The order of training images with these labels (int64 [images]) under `data.sampling`; None: uniform."""
    return BalancedOrder(recipe.seed, labels) if recipe.data.sampling == "balanced" else None


def sample_indices(
    seed: int, images: int, batch_size: int, step: int, rows: slice, balanced: BalancedOrder | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(image indices, earlier uses of each) of rows `rows` of the global batch of step `step`, both int64 [n].

    Without `balanced`, an image has been used once in every earlier epoch.
    """
    positions = step * batch_size + np.arange(rows.start, rows.stop)
    epochs, places = np.divmod(positions, images)
    indices, uses = np.empty_like(places), epochs.copy()
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = epoch_permutation(seed, int(epoch), images)[places[here]]
        if balanced is not None:
            filled, used = balanced.epoch(int(epoch))
            indices[here], uses[here] = filled[indices[here]], used[indices[here]]
    return indices, uses


def position_of(seed: int, images: int, image: int, use: int, balanced: BalancedOrder | None = None) -> int:
    """Where in the stream `image` is used after `use` earlier uses: row position % batch_size of a step."""
    epoch, slot = (use, image) if balanced is None else divmod(balanced.slot_of(image, use), images)
    return epoch * images + int(np.flatnonzero(epoch_permutation(seed, epoch, images) == slot)[0])


def bn_indices(seed: int, images: int) -> np.ndarray:
    """The training images that BatchNorm's statistics are estimated on, sorted, int64; always the same ones.

    A tenth of the images, so that evaluating on a small set does not cost a second epoch; at most 2,048. They are
    sampled uniformly whatever `data.sampling` is, as the images of an evaluation are.
    """
    least, most = BN_IMAGES
    return np.sort(epoch_permutation(seed, 0, images)[: min(max(images // 10, least), most)])


@lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, images: int) -> np.ndarray:
    """The order of the images in an epoch, int64 [images]."""
    return rng.permutation(seed, "order", epoch, images)

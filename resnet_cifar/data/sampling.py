"""Which training images make step k: one stream of concatenated per-epoch permutations, cut into full batches.

There is no sampler state. The order is a function of (seed, epoch), so resuming at step k costs nothing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from resnet_cifar import rng

BN_IMAGES = 256, 2048  # minimum and maximum number of images for precise BatchNorm statistics


def sample_indices(seed: int, images: int, batch_size: int, step: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """(image indices, their epochs) of rows `rows` of the global batch of step `step`, both int64 [n]."""
    positions = step * batch_size + np.arange(rows.start, rows.stop)
    epochs, places = np.divmod(positions, images)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = epoch_permutation(seed, int(epoch), images)[places[here]]
    return indices, epochs


def bn_indices(seed: int, images: int) -> np.ndarray:
    """The training images that BatchNorm's statistics are estimated on, sorted, int64; always the same ones.

    A tenth of the images, so that evaluating on a small set does not cost a second epoch; at most 2,048.
    """
    least, most = BN_IMAGES
    return np.sort(epoch_permutation(seed, 0, images)[: min(max(images // 10, least), most)])


@lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, images: int) -> np.ndarray:
    """The order of the images in an epoch, int64 [images]."""
    return rng.permutation(seed, "order", epoch, images)

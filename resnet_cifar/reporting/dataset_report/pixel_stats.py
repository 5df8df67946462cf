"""Pixel statistics of a dataset: exact mean and standard deviation, histograms, and mean image of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from resnet_cifar.data.image_dataset import ImageDataset

_CHUNK_BYTES = 8 * 2**20
_LONGEST = 64  # pixels of a mean image: of larger ones the details are blurred anyway


@dataclass(frozen=True)
class Statistics:
    """`histograms`: counts of each value 0..255 per channel, int64 [3, 256]; mean and std: [3] in 0..1.

    std is the population's: the root of the mean squared distance of every pixel of every image from `mean`. (The mean
    of per-image deviations, which is sometimes quoted, is smaller.) `class_means`: uint8 [classes, height, width, 3]
    of the requested classes; 0 for a class without images.
    """

    images: int
    histograms: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_means: np.ndarray


def measure(sets: Sequence[ImageDataset], classes: Sequence[int]) -> Statistics:
    """The statistics of all images of `sets`, which have one size, and the mean images of `classes`."""
    height, width = _reduced(sets[0].size)
    histograms = np.zeros((3, 256), np.int64)
    sums = torch.zeros(len(classes) + 1, height * width * 3, dtype=torch.float64)  # the last: of all other classes
    counts = torch.zeros(len(classes) + 1, dtype=torch.float64)
    place = {label: number for number, label in enumerate(classes)}
    for images in sets:
        rows = chunk_rows(images, np.arange(len(images)))
        for here, chunk in zip(rows, images.read(rows), strict=True):
            histograms += _histograms(chunk.numpy())
            places = torch.tensor([place.get(label, len(classes)) for label in images.labels[here].tolist()])
            sums.index_add_(0, places, _small(chunk, height, width).flatten(1).double())
            counts += torch.bincount(places, minlength=len(classes) + 1)
    means = (sums / counts.clamp_min(1)[:, None])[:-1].round().to(torch.uint8)
    mean, std = _moments(histograms)
    total = sum(map(len, sets))
    return Statistics(total, histograms, mean, std, means.reshape(-1, height, width, 3).numpy())


def chunk_rows(images: ImageDataset, rows: np.ndarray) -> list[np.ndarray]:
    """`rows` in chunks whose images are a few megabytes."""
    height, width = images.size
    size = max(1, _CHUNK_BYTES // (height * width * 3))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _histograms(images: np.ndarray) -> np.ndarray:
    """int64 [3, 256]. Pillow counts three channels in one pass."""
    counted = Image.fromarray(images.reshape(-1, images.shape[2], 3)).histogram()
    return np.array(counted, np.int64).reshape(3, 256)


def _moments(histograms: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, from sums of whole numbers."""
    values = np.arange(256)
    counts, sums, squares = histograms.sum(1), histograms @ values, histograms @ values**2
    mean = sums / counts
    # Exact Python integers: no cancellation.
    spread = [int(n) * int(q) - int(s) ** 2 for n, s, q in zip(counts, sums, squares, strict=True)]
    std = [part**0.5 / int(n) for part, n in zip(spread, counts, strict=True)]
    return tuple((mean / 255).tolist()), tuple(value / 255 for value in std)


def _reduced(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, _LONGEST / max(size))
    return tuple(max(1, round(side * scale)) for side in size)


def _small(images: Tensor, height: int, width: int) -> Tensor:
    """[n, height, width, 3], averaged over areas where that is smaller."""
    if images.shape[1:3] == (height, width):
        return images
    return F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float(), (height, width)).permute(0, 2, 3, 1)

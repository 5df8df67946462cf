"""Which images of a set are there more than once: to the pixel by their digest, nearly so by `duplicates`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.reporting.dataset_report import duplicates
from resnet_cifar.reporting.dataset_report.duplicates import SIDE
from resnet_cifar.reporting.dataset_report.pixel_stats import chunk_rows

# Time goes with the square: 60,000 images, and their mirror images, are 4e9 comparisons, about 20 s of one core.
MOST = 120_000
_DOUBTFUL = 0.2  # of a part's images
_GREY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's


@dataclass(frozen=True)
class Pair:
    """Two images, each as (part, row in it), their labels, how well they agree, and how: `exact` to the pixel."""

    one: tuple[str, int]
    other: tuple[str, int]
    labels: tuple[int, int]
    agreement: float
    exact: bool
    mirrored: bool

    @property
    def kind(self) -> str:
        """Why somebody should look at it, the gravest that is true: `labels`, `test`, `parts` or `within`."""
        if self.labels[0] != self.labels[1]:
            return "labels"
        if self.one[0] == self.other[0]:
            return "within"
        return "test" if "test" in (self.one[0], self.other[0]) else "parts"


@dataclass(frozen=True)
class Copies:
    """`compared`: how many images of each part were looked at; less than `images` where there are too many.

    `exact`, `near`: {(part, other part): images of `part` that have a copy in the other}, `near` with the exact ones.
    `elsewhere`: {part: its images that have a near copy in any other part}. `pairs`: the best first; of n equal images
    n - 1 pairs. `flat` and `complete`: see `duplicates.Near`.
    """

    images: dict[str, int]
    compared: dict[str, int]
    exact: dict[tuple[str, str], int]
    near: dict[tuple[str, str], int]
    elsewhere: dict[str, int]
    pairs: list[Pair]
    flat: int
    complete: bool

    @property
    def doubtful(self) -> bool:
        """Whether so many images have a near copy that it is rather the kind of pictures: patterns, digits, film."""
        alone = {(one, other): self.near[one, other] - self.exact[one, other] for one, other in self.near}
        return any(count > _DOUBTFUL * self.compared[part] for (part, _), count in alone.items())


def find(parts: Mapping[str, ImageDataset]) -> Copies:
    """The copies within and between `parts`, whose images have one size."""
    total = sum(map(len, parts.values()))
    rows = {name: _spread(len(images), total) for name, images in parts.items()}
    thumbnails, digests = zip(*(_read(images, rows[name]) for name, images in parts.items()), strict=True)
    part = np.repeat(np.arange(len(parts)), [len(chosen) for chosen in rows.values()])
    row = np.concatenate(list(rows.values()))
    label = np.concatenate([images.labels.numpy()[rows[name]] for name, images in parts.items()])
    # Images that are equal to the pixel are one group, of which one is compared with the others'.
    numbers: dict[bytes, int] = {}
    group = np.array([numbers.setdefault(digest, len(numbers)) for each in digests for digest in each])
    head = np.unique(group, return_index=True)[1]
    near = duplicates.search(np.concatenate(thumbnails)[head])
    members = np.zeros((len(head), len(parts)), np.int64)
    np.add.at(members, (group, part), 1)
    reached = members.copy()
    np.add.at(reached, near.first, members[near.second])
    np.add.at(reached, near.second, members[near.first])

    names = list(parts)

    def pair(a: int, b: int, agreement: float, exact: bool, mirrored: bool) -> Pair:
        places = [(names[part[i]], int(row[i])) for i in (a, b)]
        return Pair(*places, (int(label[a]), int(label[b])), agreement, exact, mirrored)

    rest = np.setdiff1d(np.arange(len(group)), head)
    pairs = [pair(head[group[i]], i, 1.0, True, False) for i in rest]
    found = zip(near.first, near.second, near.agreement, near.mirrored, strict=True)
    pairs += [pair(head[a], head[b], float(agreement), False, bool(flip)) for a, b, agreement, flip in found]
    return Copies(
        images={name: len(images) for name, images in parts.items()},
        compared={name: len(chosen) for name, chosen in rows.items()},
        exact=_counts(names, members, members),
        near=_counts(names, members, reached),
        elsewhere={
            name: int(members[np.delete(reached, i, axis=1).any(axis=1), i].sum()) for i, name in enumerate(names)
        },
        pairs=pairs,
        flat=near.flat,
        complete=near.complete,
    )


def _counts(names: list[str], members: np.ndarray, reached: np.ndarray) -> dict[tuple[str, str], int]:
    """Images of each part whose group reaches an image, not themselves, of each other part."""
    return {
        (one, other): int(members[reached[:, j] > (i == j), i].sum())
        for i, one in enumerate(names)
        for j, other in enumerate(names)
    }


def _spread(count: int, total: int) -> np.ndarray:
    """All rows or, where the parts together have more than MOST, this part's share of them, evenly spaced."""
    kept = count if total <= MOST else max(1, count * MOST // total)
    return np.arange(kept) * count // max(kept, 1)


def _read(images: ImageDataset, rows: np.ndarray) -> tuple[np.ndarray, list[bytes]]:
    """Grey thumbnails, uint8 [n, SIDE, SIDE], and a digest of every image's pixels."""
    thumbnails, digests = [np.empty((0, SIDE, SIDE), np.uint8)], []
    for chunk in images.read(chunk_rows(images, rows)):
        thumbnails.append(_thumbnails(chunk))
        digests += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in chunk.numpy()]
    return np.concatenate(thumbnails), digests


def _thumbnails(images: Tensor) -> np.ndarray:
    grey = (images.float() @ _GREY)[:, None]
    if images.shape[1:3] != (SIDE, SIDE):
        grey = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)
    return grey[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()

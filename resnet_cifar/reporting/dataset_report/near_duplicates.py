"""Finds images that occur more than once in a dataset: identical ones by hash, near-duplicates by similarity.

Near-duplicates are found in two steps. A short descriptor of every image is compared exactly with every other, in tiles
of matrix products; the candidate pairs are compared closely, at every small shift. The descriptor is that of perceptual
hashes (pHash), the low frequencies of the gray image, but real-valued and weighted: amplitudes of natural images fall
as one over the frequency (Field 1987), and the lowest frequencies of different images agree by chance. Coefficients of
a mirrored image differ only in the sign of the odd columns, so mirror images need no second descriptor.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.reporting.dataset_report.pixel_stats import chunk_rows

SIDE = 32  # of the gray thumbnails that are compared
SHIFT = 2  # largest shift of one thumbnail against the other, in pixels
# Similarity, -1..1, from which a pair counts, chosen by eye on CIFAR-10: 0.80 accepts different ships, 0.90 misses
# copies that were sharpened or cropped. At 0.85, 335 of 10,000 test images have a partner in training, a few of them
# being silhouettes; ciFAIR (Barz & Denzler 2020) counted 286 by eye.
THRESHOLD = 0.85
_COARSE, _CANDIDATE = 8, 0.80  # frequencies of the descriptor, and the similarity from which a pair is a candidate
_FINE = 12  # frequencies compared closely
# Frames make different images similar, so the inner parts must agree as well. On CIFAR-10 the inner similarity of pairs
# above THRESHOLD separates frames (below 0.5) from copies (above 0.65).
_INNER, _INNER_FINE, _INNER_THRESHOLD = 20, 8, 0.6
_FLAT = 2.0  # standard deviation of gray values, below which a thumbnail is uniform
_TILE = 4096
MAX_CANDIDATES = 500_000


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images, `first` < `second`, int64 [k], in descending order of `agreement` (similarity, float32 [k]).

    `mirrored`, bool [k]: whether the mirror image agrees. `flat`, bool [n]: the images that are too uniform to compare.
    `complete`: False if there were more candidates than MAX_CANDIDATES.
    """

    first: np.ndarray
    second: np.ndarray
    agreement: np.ndarray
    mirrored: np.ndarray
    flat: np.ndarray
    complete: bool


def find_near_duplicates(thumbnails: np.ndarray) -> NearDuplicates:
    """All pairs of gray `thumbnails`, uint8 [n, SIDE, SIDE], whose similarity is at least THRESHOLD."""
    parts = torch.from_numpy(thumbnails).split(_TILE)
    is_flat = np.concatenate([[], *(part.flatten(1).float().std(1).numpy() < _FLAT for part in parts)]).astype(bool)
    kept = np.flatnonzero(~is_flat)
    found, complete = _candidates(torch.from_numpy(thumbnails[kept]))
    first, second, mirrored = (found[:, column] for column in range(3))
    agreement = np.empty(len(found), np.float32)
    for start in range(0, len(found), _TILE):
        part = slice(start, start + _TILE)
        one, other = thumbnails[kept[first[part]]], thumbnails[kept[second[part]]]
        other = np.where(mirrored[part, None, None] == 1, other[:, :, ::-1], other)
        agreement[part] = similarity(one, other)
    order = np.lexsort((second, first, -agreement))
    order = order[agreement[order] >= THRESHOLD]
    return NearDuplicates(
        kept[first[order]], kept[second[order]], agreement[order], mirrored[order] == 1, is_flat, complete
    )


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Similarity of pairs of thumbnails, uint8 [k, SIDE, SIDE] each: float32 [k], the best over shifts up to SHIFT.

    The correlation of their weighted frequencies: 1 for equal images, independent of brightness and contrast. If the
    inner parts disagree, their lower correlation is returned.
    """
    a, b = torch.from_numpy(one).float(), torch.from_numpy(np.ascontiguousarray(other)).float()
    shifts = range(-SHIFT, SHIFT + 1)
    side = SIDE - 2 * SHIFT
    fixed, fixed_inner = _describe(_window(a, side), _FINE), _describe(_window(a, _INNER), _INNER_FINE)
    best, inner = torch.full((2, len(a)), -1.0)
    for down, across in itertools.product(shifts, shifts):
        moved = (fixed * _describe(_window(b, side, down, across), _FINE)).sum(1)
        moved_inner = (fixed_inner * _describe(_window(b, _INNER, down, across), _INNER_FINE)).sum(1)
        inner = torch.where(moved > best, moved_inner, inner)
        best = torch.maximum(best, moved)
    return torch.where(inner < _INNER_THRESHOLD, torch.minimum(inner, best), best).numpy()


def _window(gray: Tensor, side: int, down: int = 0, across: int = 0) -> Tensor:
    """The center of thumbnails, `side` pixels wide, shifted by some pixels."""
    top, left = (SIDE - side) // 2 + down, (SIDE - side) // 2 + across
    return gray[:, top : top + side, left : left + side]


def _candidates(thumbnails: Tensor) -> tuple[np.ndarray, bool]:
    """Candidate pairs (first, second, mirrored), int64 [k, 3], and whether these are all."""
    described = torch.cat([torch.empty(0), *(_describe(part.float(), _COARSE) for part in thumbnails.split(_TILE))])
    odd = torch.arange(_COARSE).expand(_COARSE, _COARSE)[_weights(_COARSE)[1]] % 2 == 1
    even, odd = described[:, ~odd], described[:, odd]
    tiles = torch.empty(_TILE * _TILE)
    found, count = [np.empty((0, 3), np.int64)], 0
    for top in range(0, len(described), _TILE):
        for left in range(top, len(described), _TILE):
            one, other = slice(top, top + _TILE), slice(left, left + _TILE)
            tile = tiles[: len(even[one]) * len(even[other])].view(len(even[one]), -1)
            # The similarity to a mirror image is even minus odd part, so the larger of both is:
            torch.mm(odd[one], odd[other].T, out=tile).abs_().addmm_(even[one], even[other].T)
            places = np.flatnonzero(tile.numpy().ravel() >= _CANDIDATE)  # much faster than torch's
            first, second = np.divmod(places, tile.shape[1])
            pairs = np.stack([first + top, second + left], axis=1)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            mirrored = (odd[pairs[:, 0]] * odd[pairs[:, 1]]).sum(1) < 0
            found.append(np.column_stack([pairs, mirrored.numpy()]))
            count += len(pairs)
            if count > MAX_CANDIDATES:
                return np.concatenate(found)[:MAX_CANDIDATES], False
    return np.concatenate(found), True


def _describe(gray: Tensor, frequencies: int) -> Tensor:
    """Normalized weighted DCT coefficients of square images [n, side, side], without the mean: [n, dimensions]."""
    side = gray.shape[-1]
    order = torch.arange(frequencies, dtype=gray.dtype)
    places = torch.arange(side, dtype=gray.dtype) + 0.5
    basis = torch.cos(torch.pi / side * order[:, None] * places) * (1 + (order > 0).to(gray.dtype))[:, None].sqrt()
    weights, used = _weights(frequencies)
    values = (basis @ gray @ basis.T * weights.to(gray.dtype))[:, used]
    return values / values.norm(dim=1, keepdim=True).clamp_min(torch.finfo(gray.dtype).tiny)


def _weights(frequencies: int) -> tuple[Tensor, Tensor]:
    """The frequency of each coefficient [f, f], and which are used: a quarter disc without the mean."""
    order = torch.arange(frequencies, dtype=torch.float64)
    radius = torch.hypot(order[:, None], order[None])
    return radius, (radius > 0) & (radius < frequencies)


# Time is quadratic: 60,000 images with their mirror images are 4e9 comparisons, about 20 s on one core.
MAX_IMAGES = 120_000
_UNRELIABLE = 0.2  # share of a split's images
_GRAY = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's


@dataclass(frozen=True)
class Pair:
    """Two images as (split, row), their labels and similarity; `exact`: whether their pixels are identical."""

    one: tuple[str, int]
    other: tuple[str, int]
    labels: tuple[int, int]
    agreement: float
    exact: bool
    mirrored: bool

    @property
    def kind(self) -> str:
        """The most serious problem that applies: `labels`, `test`, `parts` or `within`."""
        if self.labels[0] != self.labels[1]:
            return "labels"
        if self.one[0] == self.other[0]:
            return "within"
        return "test" if "test" in (self.one[0], self.other[0]) else "parts"


@dataclass(frozen=True)
class Duplicates:
    """`compared`: number of compared images per split, fewer than `images` in a very large dataset.

    `exact`, `near`: {(split, other): images of `split` with a duplicate in `other`}; `near` includes the exact ones.
    `elsewhere`: {split: its images with a near-duplicate in any other split}. `pairs`: most similar first; n identical
    images give n - 1 pairs. `flat`: number of images too uniform to compare. `complete`: see `NearDuplicates`.
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
    def unreliable(self) -> bool:
        """Whether enough images have a near-duplicate that they are just similar: patterns, digits, video frames."""
        alone = {(one, other): self.near[one, other] - self.exact[one, other] for one, other in self.near}
        return any(count > _UNRELIABLE * self.compared[part] for (part, _), count in alone.items())


def find_duplicates(parts: Mapping[str, ImageDataset]) -> Duplicates:
    """The duplicates within and between splits, whose images have one size."""
    total = sum(map(len, parts.values()))
    rows = {name: _spread(len(images), total) for name, images in parts.items()}
    thumbnails, digests = zip(*(_read(images, rows[name]) for name, images in parts.items()), strict=True)
    part = np.repeat(np.arange(len(parts)), [len(chosen) for chosen in rows.values()])
    row = np.concatenate(list(rows.values()))
    label = np.concatenate([images.labels.numpy()[rows[name]] for name, images in parts.items()])
    # Identical images form a group, of which one is compared with those of other groups.
    numbers: dict[bytes, int] = {}
    group = np.array([numbers.setdefault(digest, len(numbers)) for each in digests for digest in each])
    head = np.unique(group, return_index=True)[1]
    near = find_near_duplicates(np.concatenate(thumbnails)[head])
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
    return Duplicates(
        images={name: len(images) for name, images in parts.items()},
        compared={name: len(chosen) for name, chosen in rows.items()},
        exact=_counts(names, members, members),
        near=_counts(names, members, reached),
        elsewhere={
            name: int(members[np.delete(reached, i, axis=1).any(axis=1), i].sum()) for i, name in enumerate(names)
        },
        pairs=pairs,
        flat=int(near.flat[group].sum()),
        complete=near.complete,
    )


def _counts(names: list[str], members: np.ndarray, reached: np.ndarray) -> dict[tuple[str, str], int]:
    """Number of images of each split whose group reaches another image of each split."""
    return {
        (one, other): int(members[reached[:, j] > (i == j), i].sum())
        for i, one in enumerate(names)
        for j, other in enumerate(names)
    }


def _spread(count: int, total: int) -> np.ndarray:
    """All rows, or this split's evenly spaced share of MAX_IMAGES if there are more in total."""
    kept = count if total <= MAX_IMAGES else max(1, count * MAX_IMAGES // total)
    return np.arange(kept) * count // max(kept, 1)


def _read(images: ImageDataset, rows: np.ndarray) -> tuple[np.ndarray, list[bytes]]:
    """Gray thumbnails, uint8 [n, SIDE, SIDE], and a hash of the pixels of every image."""
    thumbnails, digests = [np.empty((0, SIDE, SIDE), np.uint8)], []
    for chunk in images.read(chunk_rows(images, rows)):
        thumbnails.append(_thumbnails(chunk))
        digests += [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in chunk.numpy()]
    return np.concatenate(thumbnails), digests


def _thumbnails(images: Tensor) -> np.ndarray:
    gray = (images.float() @ _GRAY)[:, None]
    if images.shape[1:3] != (SIDE, SIDE):
        gray = F.interpolate(gray, (SIDE, SIDE), mode="bilinear", antialias=True)
    return gray[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()

"""Pictures that are in a set twice: to the pixel, or nearly so, mirrored or not.

Two steps. A short descriptor of every picture is compared with every other, exactly, in tiles of matrix products; the
pairs that pass are compared closely, at every small shift. The descriptor is that of perceptual hashes, the low
frequencies of the grey picture (pHash), kept as numbers and weighted: a natural picture's amplitudes fall like one over
the frequency (Field 1987), and two pictures of different things agree by chance in the lowest. A mirrored picture's
coefficients are the same but for the sign of the odd columns, so mirrors cost no second descriptor.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIDE = 32  # of the grey thumbnails that are compared
SHIFT = 2  # pixels of a thumbnail by which one picture may be moved against the other
# Agreement, -1..1, from which a pair counts, chosen by eye on CIFAR-10: at 0.80 there are other ships on other seas, at
# 0.90 copies that were sharpened or cut are lost. From 0.85 on 335 of 10,000 test images have a partner in training;
# a few of these are silhouettes, and people who looked for copies counted 286 (ciFAIR, Barz & Denzler 2020).
THRESHOLD = 0.85
_COARSE, _CANDIDATE = 8, 0.80  # frequencies of the descriptor, and its agreement from which a pair is looked at closely
_FINE = 12  # frequencies compared closely
# Frames make pictures alike that are not, so their inner parts must agree too. On CIFAR-10 the pairs above THRESHOLD
# fall apart into frames (below 0.5) and copies (above 0.65).
_INNER, _INNER_FINE, _INNER_THRESHOLD = 20, 8, 0.6
_FLAT = 2.0  # standard deviation in grey values: below, a thumbnail shows nothing but noise
_TILE = 4096
MOST_CANDIDATES = 500_000


@dataclass(frozen=True)
class Near:
    """Pairs of pictures, `first` < `second`, int64 [k]: their agreement, float32 [k], the best pair first; `mirrored`,
    bool [k]: whether it is the mirror image that agrees.

    `flat`: how many pictures show too little to be compared; `complete`: False where there were more candidates than
    are looked at.
    """

    first: np.ndarray
    second: np.ndarray
    agreement: np.ndarray
    mirrored: np.ndarray
    flat: int
    complete: bool


def search(thumbnails: np.ndarray) -> Near:
    """All pairs among `thumbnails` (uint8 [n, SIDE, SIDE], grey) that agree by THRESHOLD or more."""
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
        agreement[part] = compare(one, other)
    order = np.lexsort((second, first, -agreement))
    order = order[agreement[order] >= THRESHOLD]
    return Near(
        kept[first[order]], kept[second[order]], agreement[order], mirrored[order] == 1, int(is_flat.sum()), complete
    )


def compare(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Agreement of pairs of thumbnails, uint8 [k, SIDE, SIDE] each: float32 [k], the best over shifts up to SHIFT.

    It is the correlation of their weighted frequencies: 1 for equal pictures, whatever brightness and contrast. Where
    the inner parts disagree it is theirs.
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


def _window(grey: Tensor, side: int, down: int = 0, across: int = 0) -> Tensor:
    """The middle of thumbnails, `side` pixels wide, moved by some pixels."""
    top, left = (SIDE - side) // 2 + down, (SIDE - side) // 2 + across
    return grey[:, top : top + side, left : left + side]


def _candidates(thumbnails: Tensor) -> tuple[np.ndarray, bool]:
    """Pairs (first, second, mirrored) whose descriptors agree, int64 [k, 3], and whether these are all."""
    described = torch.cat([torch.empty(0), *(_describe(part.float(), _COARSE) for part in thumbnails.split(_TILE))])
    odd = torch.arange(_COARSE).expand(_COARSE, _COARSE)[_weights(_COARSE)[1]] % 2 == 1
    even, odd = described[:, ~odd], described[:, odd]
    tiles = torch.empty(_TILE * _TILE)
    found, count = [np.empty((0, 3), np.int64)], 0
    for top in range(0, len(described), _TILE):
        for left in range(top, len(described), _TILE):
            one, other = slice(top, top + _TILE), slice(left, left + _TILE)
            tile = tiles[: len(even[one]) * len(even[other])].view(len(even[one]), -1)
            # a mirror image's agreement is the even part minus the odd one, so the better of both is this:
            torch.mm(odd[one], odd[other].T, out=tile).abs_().addmm_(even[one], even[other].T)
            places = np.flatnonzero(tile.numpy().ravel() >= _CANDIDATE)  # much faster than torch's
            first, second = np.divmod(places, tile.shape[1])
            pairs = np.stack([first + top, second + left], axis=1)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            mirrored = (odd[pairs[:, 0]] * odd[pairs[:, 1]]).sum(1) < 0
            found.append(np.column_stack([pairs, mirrored.numpy()]))
            count += len(pairs)
            if count > MOST_CANDIDATES:
                return np.concatenate(found)[:MOST_CANDIDATES], False
    return np.concatenate(found), True


def _describe(grey: Tensor, frequencies: int) -> Tensor:
    """The weighted low frequencies of square pictures [n, side, side], of length one: [n, dimensions].

    They are coefficients of the discrete cosine transform, without the mean.
    """
    side = grey.shape[-1]
    order = torch.arange(frequencies, dtype=grey.dtype)
    places = torch.arange(side, dtype=grey.dtype) + 0.5
    basis = torch.cos(torch.pi / side * order[:, None] * places) * (1 + (order > 0).to(grey.dtype))[:, None].sqrt()
    weights, used = _weights(frequencies)
    values = (basis @ grey @ basis.T * weights.to(grey.dtype))[:, used]
    return values / values.norm(dim=1, keepdim=True).clamp_min(torch.finfo(grey.dtype).tiny)


def _weights(frequencies: int) -> tuple[Tensor, Tensor]:
    """The frequency of each coefficient [f, f], and which are used: all in a quarter of a disc but the mean."""
    order = torch.arange(frequencies, dtype=torch.float64)
    radius = torch.hypot(order[:, None], order[None])
    return radius, (radius > 0) & (radius < frequencies)

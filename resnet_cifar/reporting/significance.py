"""Whether two models differ in accuracy on the same images, or might by chance. Pure functions of who is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05
_Z = 1.959963984540054  # of a 95 % interval


class McNemar(NamedTuple):
    """Of `images` that two models have labelled: how many only the first, or only the second, has right.

    `difference`: the first's accuracy less the second's, and its 95 % interval; `p`: of so uneven a split by chance.
    """

    images: int
    first_only: int
    second_only: int
    difference: float
    interval: tuple[float, float]
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's test (1947) in its exact form: of the images that one alone has right, a fair coin decides which.

    `first`, `second`: whether each model is right, bool [n], of the same images in one order. The interval is Agresti
    & Min's (2005): half an image more in each of the four cells, then Wald's.
    """
    from scipy.stats import binomtest

    images = len(first)
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0
    more, less, total = b + 0.5, c + 0.5, images + 2
    middle = (more - less) / total
    half = _Z * math.sqrt(more + less - (more - less) ** 2 / total) / total
    return McNemar(images, b, c, (b - c) / images, (middle - half, middle + half), p)


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, corrected so that all together err in one of twenty (Holm 1979)."""
    corrected, largest = [0.0] * len(ps), 0.0
    for done, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - done) * ps[place]))
        corrected[place] = largest
    return corrected


def sentence(first: str, second: str, found: McNemar, p: float, comparisons: int) -> str:
    """What `mcnemar` has found, for a person; `p`: the corrected one where there are several `comparisons`."""
    low, high = (100 * end for end in found.interval)
    counts = (
        f"{first} alone is right on {found.first_only:,} images and {second} alone on {found.second_only:,}, of "
        f"{found.images:,}"
    )
    gap = f"{100 * found.difference:+.2f} points (95 % interval {low:+.2f} to {high:+.2f})"
    corrected = f", corrected by Holm for {comparisons} comparisons" if comparisons > 1 else ""
    if p >= LEVEL:
        return f"{counts}: {gap}, {_p(p)}{corrected}. This may be chance."
    better, worse = (first, second) if found.difference > 0 else (second, first)
    return f"{counts}: {gap}, {_p(p)}{corrected}. {better} is better than {worse} on such images."


def _p(p: float) -> str:
    return f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"

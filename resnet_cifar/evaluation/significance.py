"""Whether two models differ in accuracy on the same images, or might by chance. Pure functions of who is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05
_CONFIDENCE = 0.95


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

    `first`, `second`: whether each model is right, bool [n], of the same images in one order. The interval is the same
    test's: Clopper & Pearson's (1934) for the first's share of the images that one alone has right, given how many
    these are. So it holds 0 just where p is at least 0.05.
    """
    from scipy.stats import binomtest

    images = len(first)
    b, c = int((first & ~second).sum()), int((second & ~first).sum())
    if b + c == 0:
        return McNemar(images, 0, 0, 0.0, (0.0, 0.0), 1.0)
    tested = binomtest(b, b + c, 0.5)
    shares = tested.proportion_ci(_CONFIDENCE, "exact")
    low, high = ((2 * share - 1) * (b + c) / images for share in (shares.low, shares.high))
    return McNemar(images, b, c, (b - c) / images, (float(low), float(high)), float(tested.pvalue))


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values of several comparisons, corrected so that all together err in one of twenty (Holm 1979)."""
    corrected, largest = [0.0] * len(ps), 0.0
    for done, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - done) * ps[place]))
        corrected[place] = largest
    return corrected


def verdict(first: str, second: str, found: McNemar, p: float) -> str:
    """What `mcnemar` has found, for a person; `p`: the corrected one where several pairs are compared."""
    if not found.first_only + found.second_only:
        return "right on the same images"
    if p >= LEVEL:
        return "may be chance"
    return f"{first if found.difference > 0 else second} is better on such images"

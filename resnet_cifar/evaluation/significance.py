"""Significance of a difference in accuracy between two models on the same images: McNemar's test, Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05
_CONFIDENCE = 0.95


class McNemar(NamedTuple):
    """Number of images, and of those that only the first or only the second model classifies correctly.

    `difference`: accuracy of the first minus that of the second, with its 95 % `interval`; `p`: the p-value.
    """

    images: int
    first_only: int
    second_only: int
    difference: float
    interval: tuple[float, float]
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test (1947): a binomial test of the discordant images, which exactly one model has right.

    `first`, `second`: whether each model is right, bool [n], for the same images in the same order. The interval is
    that of Clopper & Pearson (1934) for the first's share of the discordant images: it contains 0 exactly if p >= 0.05.
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
    """Adjusts the p-values of several comparisons for the family-wise error rate (Holm 1979)."""
    corrected, largest = [0.0] * len(ps), 0.0
    for done, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - done) * ps[place]))
        corrected[place] = largest
    return corrected


def verdict(first: str, second: str, found: McNemar, p: float) -> str:
    """The result of `mcnemar` in words; `p`: the adjusted p-value if several pairs are compared."""
    if not found.first_only + found.second_only:
        return "right on the same images"
    if p >= LEVEL:
        return "may be chance"
    return f"{first if found.difference > 0 else second} is better on such images"

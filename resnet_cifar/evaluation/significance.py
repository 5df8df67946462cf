"""Significance of differences: between two models on the same images (McNemar's test), between two recipes over seeds
(Student's and Welch's t), with Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05
_CONFIDENCE = 0.95
_ROUNDING = 1e-12  # of a difference of two accuracies
_MIN_PAIRS = 3  # seeds that both recipes need for a paired test


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


class TTest(NamedTuple):
    """The test of a difference of means: `paired`, or else Welch's, of this number of `seeds` of each recipe.

    `difference`: mean of the first minus that of the second, with its 95 % `interval`; `p`: the p-value. Interval and p
    are None where the results do not vary at all.
    """

    paired: bool
    seeds: tuple[int, int]
    difference: float
    interval: tuple[float, float] | None
    p: float | None


def t_test(first: Mapping[int, float], second: Mapping[int, float], same_images: bool) -> TTest | None:
    """Tests whether two recipes differ in the mean of a result; None if one of them has fewer than two seeds.

    `first`, `second`: seed -> result. The test is paired (Student 1908) over the seeds that both have, if these are at
    least three and `same_images`: each is evaluated on the same images in both recipes. Otherwise it is Welch's (1947).
    """
    from scipy import stats

    shared = [seed for seed in first if seed in second]
    paired = same_images and len(shared) >= _MIN_PAIRS
    if min(len(first), len(second)) < 2:
        return None
    a, b = (np.array([each[seed] for seed in (shared if paired else each)]) for each in (first, second))
    difference, seeds = float(a.mean() - b.mean()), (len(a), len(b))
    spreads = [np.ptp(a - b)] if paired else [np.ptp(a), np.ptp(b)]
    if max(spreads) < _ROUNDING:
        return TTest(paired, seeds, difference, None, None)
    tested = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    low, high = tested.confidence_interval(_CONFIDENCE)
    return TTest(paired, seeds, difference, (float(low), float(high)), float(tested.pvalue))


def p_text(p: float) -> str:
    """A p-value with two significant digits."""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


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

"""McNemar's exact test and Holm's correction, against values worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from resnet_cifar.evaluation import significance


def models(both: int, first_only: int, second_only: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Who is right, so often."""
    first = [True] * (both + first_only) + [False] * (second_only + neither)
    second = [True] * both + [False] * first_only + [True] * second_only + [False] * neither
    return np.array(first), np.array(second)


def test_the_exact_p_is_the_binomials_two_tails() -> None:
    found = significance.mcnemar(*models(80, 8, 2, 10))
    assert (found.images, found.first_only, found.second_only) == (100, 8, 2)
    # 2 * (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 2 * 56 / 1024
    assert found.p == pytest.approx(112 / 1024, abs=1e-12)
    assert found.difference == pytest.approx(0.06)


def test_the_interval_is_that_of_the_share_among_those_that_one_alone_has_right() -> None:
    low, high = significance.mcnemar(*models(80, 0, 10, 10)).interval
    # Of 0 in 10 the upper end p solves (1 - p)^10 = 0.025; (2p - 1) * 10 / 100 is the difference.
    assert (low, high) == pytest.approx((-0.1, (2 * (1 - 0.025**0.1) - 1) / 10))


def test_the_interval_and_p_never_contradict() -> None:
    assert significance.mcnemar(*models(9000, 20, 9, 971)).interval[0] < 0, "p is 0.061"
    for first, second in itertools.product(range(31), repeat=2):
        found = significance.mcnemar(*models(40, first, second, 9))
        low, high = found.interval
        assert (found.p < significance.LEVEL) == (low > 0 or high < 0), (first, second)
        assert low <= found.difference <= high


def test_the_other_way_round_is_the_mirror_image() -> None:
    one, other = (significance.mcnemar(*pair) for pair in (models(5, 9, 1, 3), models(5, 1, 9, 3)))
    assert one.p == other.p
    assert one.difference == -other.difference
    assert one.interval == pytest.approx(tuple(-end for end in reversed(other.interval)))


def test_models_that_are_right_on_the_same_images_do_not_differ() -> None:
    found = significance.mcnemar(*models(7, 0, 0, 3))
    assert (found.p, found.difference) == (1.0, 0.0)
    assert significance.verdict("a", "b", found, found.p) == "right on the same images"


@pytest.mark.parametrize(
    ("ps", "corrected"),
    [
        ([0.04], [0.04]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 3 * 0.01; 2 * 0.03; 1 * 0.04, but not below the one before
        ([0.5, 0.9], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm(ps: list[float], corrected: list[float]) -> None:
    assert significance.holm(ps) == pytest.approx(corrected)


def test_the_verdict_names_the_better_one_by_the_corrected_p() -> None:
    found = significance.mcnemar(*models(50, 2, 20, 28))
    assert found.p < 0.001
    assert significance.verdict("old", "new", found, 3 * found.p) == "new is better on such images"
    assert significance.verdict("old", "new", found, 0.06) == "may be chance"

"""McNemar's exact test and Holm's correction, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from resnet_cifar.reporting import significance


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


def test_the_interval_is_agresti_and_mins() -> None:
    low, high = significance.mcnemar(*models(80, 8, 2, 10)).interval
    # (8.5 - 2.5) / 102, and the root of 8.5 + 2.5 - 36 / 102, over 102
    middle, error = 6 / 102, math.sqrt(11 - 36 / 102) / 102
    assert (low, high) == pytest.approx((middle - 1.959964 * error, middle + 1.959964 * error), abs=1e-8)
    assert low < 0 < high


def test_the_other_way_round_is_the_mirror_image() -> None:
    one, other = (significance.mcnemar(*pair) for pair in (models(5, 9, 1, 3), models(5, 1, 9, 3)))
    assert one.p == other.p
    assert one.difference == -other.difference
    assert one.interval == pytest.approx(tuple(-end for end in reversed(other.interval)))


def test_models_that_are_right_on_the_same_images_do_not_differ() -> None:
    found = significance.mcnemar(*models(7, 0, 0, 3))
    assert (found.p, found.difference) == (1.0, 0.0)
    assert "This may be chance" in significance.sentence("a", "b", found, found.p, 1)


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


def test_the_sentence_names_counts_the_better_one_and_the_correction() -> None:
    found = significance.mcnemar(*models(50, 2, 20, 28))
    assert found.p < 0.001
    said = significance.sentence("old", "new", found, 3 * found.p, 3)
    assert said.startswith("old alone is right on 2 images and new alone on 20, of 100: -18.00 points")
    assert "corrected by Holm for 3 comparisons" in said
    assert said.endswith("new is better than old on such images.")
    assert significance.sentence("old", "new", found, 0.06, 3).endswith("This may be chance.")

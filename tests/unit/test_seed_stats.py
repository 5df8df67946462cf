"""Mean, standard deviation and interval over seeds, against numbers worked by hand."""

from __future__ import annotations

import pytest

from resnet_cifar.reporting.seed_stats import spread, summary_line


def test_three_values_by_hand() -> None:
    """Deviations -0.02, 0, 0.02: variance 0.0008 / 2; Student's t for 2 degrees of freedom is 4.3027 (any table)."""
    found = spread([0.92, 0.90, 0.94])
    assert found["runs"] == 3
    assert found["mean"] == pytest.approx(0.92, abs=1e-12)
    assert found["standard_deviation"] == pytest.approx(0.02, abs=1e-12)
    half = 4.302653 * 0.02 / 3**0.5
    assert found["interval"] == pytest.approx([0.92 - half, 0.92 + half], abs=1e-8)
    assert summary_line("test/accuracy", found) == (
        "test/accuracy: mean 0.9200, standard deviation 0.0200, 95 % interval of the mean 0.8703 to 0.9697 (3 seeds)"
    )


def test_five_values_by_hand() -> None:
    """1 to 5: variance 10 / 4; t for 4 degrees of freedom is 2.7764."""
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["standard_deviation"] == pytest.approx(2.5**0.5, abs=1e-12)
    half = 2.776445 * (2.5 / 5) ** 0.5
    assert found["interval"] == pytest.approx([3 - half, 3 + half], abs=1e-6)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert spread([0.5, 0.5])["interval"] == [0.5, 0.5]


def test_one_value_has_no_spread() -> None:
    found = spread([0.5])
    assert (found["mean"], found["standard_deviation"], found["interval"]) == (0.5, None, None)
    assert summary_line("test/accuracy", found) == "test/accuracy: 0.5000 (1 seed)"

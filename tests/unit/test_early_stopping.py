"""training/early_stopping.py: when a run ends early, and that a resumed one ends at the same score."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_cifar.config.schema import METRIC_NAMES
from resnet_cifar.config.validation import parse
from resnet_cifar.training.early_stopping import EarlyStopping

some = settings(deadline=None, derandomize=True, max_examples=200)


def rule(patience: int, metric: str = "accuracy", min_delta: float = 0.0) -> EarlyStopping:
    return EarlyStopping(parse({"early_stopping": locals()}).early_stopping)


def scores(value: float, metric: str = "accuracy") -> dict[str, float]:
    """Scores whose other metric says the opposite."""
    other = "accuracy" if metric == "loss" else "loss"
    return {f"val/{metric}": value, f"val/{other}": value, "val/top5": 0.0}


def end(stopping: EarlyStopping, values: list[float]) -> int | None:
    """After how many scores training ends; None: never."""
    for count, value in enumerate(values, start=1):
        stopping.update(scores(value, stopping.settings.metric))
        if stopping.over:
            return count
    return None


def test_it_never_ends_early_without_patience() -> None:
    assert end(rule(0), [0.5] * 50) is None


@pytest.mark.parametrize(("patience", "after"), [(1, 3), (2, 6), (3, 7), (4, 8), (5, None)])
def test_it_ends_after_so_many_scores_in_a_row_without_an_improvement(patience: int, after: int | None) -> None:
    assert end(rule(patience), [0.1, 0.2, 0.2, 0.3, 0.25, 0.29, 0.3, 0.1]) == after


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("accuracy", [0.5, 0.6, 0.5, 0.4]),
        ("balanced_accuracy", [0.5, 0.6, 0.5, 0.4]),
        ("macro_f1", [0.5, 0.6, 0.5, 0.4]),
        ("loss", [0.5, 0.4, 0.5, 0.6]),
    ],
    ids=str,
)
def test_accuracies_should_rise_and_loss_should_fall(metric: str, values: list[float]) -> None:
    assert end(rule(2, metric), values) == 4
    assert end(rule(2, metric), values[::-1][:3]) is None


def test_a_score_as_good_as_the_best_is_no_improvement() -> None:
    assert end(rule(1), [0.5, 0.5]) == 2


def test_an_improvement_is_larger_than_the_least_one() -> None:
    """By 1/8, to the bit: numbers that have no rounding."""
    assert end(rule(1, min_delta=0.125), [0.25, 0.375]) == 2
    assert end(rule(1, min_delta=0.125), [0.25, 0.390625]) is None
    assert end(rule(1, "loss", 0.125), [0.75, 0.625]) == 2
    assert end(rule(1, "loss", 0.125), [0.75, 0.609375]) is None


def test_small_improvements_add_up_since_the_best_stays_where_it_was() -> None:
    assert end(rule(3, min_delta=0.125), [0.5, 0.5625, 0.625, 0.6875, 0.75, 0.8125]) is None
    assert end(rule(3, min_delta=0.125), [0.5, 0.5625, 0.625, 0.625]) == 4


def test_a_score_that_is_no_number_is_no_improvement() -> None:
    assert end(rule(2, "loss"), [float("nan"), float("nan")]) == 2


values = st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.625, 1.0]) | st.floats(0, 1), min_size=1, max_size=30)
rules = st.builds(
    rule, st.integers(0, 4), st.sampled_from(list(METRIC_NAMES)), st.sampled_from([0.0, 0.125]) | st.floats(0, 1)
)


@some
@given(rules, values)
def test_it_ends_where_the_definition_says(stopping: EarlyStopping, values: list[float]) -> None:
    """Each evaluation against the best that counted: patience since the last one that did."""
    patience, least = stopping.settings.patience, stopping.settings.min_delta
    sign = -1 if stopping.settings.metric == "loss" else 1
    counted = [0]  # places of the improvements
    for place, value in enumerate(values[1:], start=1):
        if sign * value > sign * values[counted[-1]] + least:
            counted.append(place)
    ends = [place + 1 for place in range(len(values)) if place - max(c for c in counted if c <= place) >= patience]
    assert end(stopping, values) == (ends[0] if patience and ends else None)


@some
@given(rules, values, st.data())
def test_a_run_that_is_resumed_at_any_score_ends_at_the_same_one(
    stopping: EarlyStopping, values: list[float], data: st.DataObject
) -> None:
    """Its state goes through JSON, as in a checkpoint."""
    cuts = data.draw(st.sets(st.integers(0, len(values))))
    resumed = EarlyStopping(stopping.settings)
    for place, value in enumerate(values):
        if place in cuts:
            saved = json.loads(json.dumps(resumed.state(), allow_nan=False))
            resumed = EarlyStopping(stopping.settings)
            resumed.resume(saved)
        assert resumed.over == stopping.over
        for one in (stopping, resumed):
            one.update(scores(value, stopping.settings.metric))
        assert (resumed.state(), resumed.over) == (stopping.state(), stopping.over)

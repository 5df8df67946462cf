"""data/splits.py: stratified cuts, drawn from the seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.data.splits import split_indices, stratified
from resnet_cifar.training.plan import Plan


def recipe_of(seed: int = 0, **data: Any) -> Recipe:
    return parse({"seed": seed, "data": {"source": "synthetic", **data}})


def labels_of(*sizes: int, seed: int = 0) -> np.ndarray:
    """This many labels of class 0, 1, ..., in a mixed order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any), st.data())
def test_counts_are_those_of_the_largest_remainders(sizes: list[int], data: st.DataObject) -> None:
    """Hamilton's method: everyone's whole share, and one more for those with the largest remainders."""
    labels = labels_of(*sizes)
    count = data.draw(st.integers(0, len(labels)))
    picked = stratified(labels, count, 3, "split", 0)
    assert len(picked) == count
    assert picked.tolist() == sorted(set(picked.tolist()))
    taken = np.bincount(labels[picked], minlength=len(sizes))
    shares = [(size * count) // len(labels) for size in sizes]
    remainders = np.array([(size * count) % len(labels) for size in sizes])  # in whole numbers: exact
    more = taken - shares
    assert set(more.tolist()) <= {0, 1}
    if more.any() and not more.all():
        assert remainders[more == 1].min() >= remainders[more == 0].max()


def test_a_balanced_set_is_cut_evenly() -> None:
    chosen = split_indices(labels_of(*[500] * 10), labels_of(*[100] * 10), 10, recipe_of(validation_fraction=0.1))
    assert np.bincount(labels_of(*[500] * 10)[chosen.validation]).tolist() == [50] * 10
    assert np.bincount(labels_of(*[500] * 10)[chosen.train]).tolist() == [450] * 10
    np.testing.assert_array_equal(chosen.test, np.arange(1000))


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 5), st.floats(0.05, 0.9), st.integers(0, 200))
def test_train_and_validation_are_disjoint_and_complete(seed: int, validation: float, limit: int) -> None:
    train, test = labels_of(80, 60, 40), labels_of(20, 20, 20)
    try:
        chosen = split_indices(train, test, 3, recipe_of(seed, validation_fraction=validation, limit=limit))
    except UserError:
        return
    assert len(np.intersect1d(chosen.train, chosen.validation)) == 0
    both = np.union1d(chosen.train, chosen.validation)
    assert len(both) == (min(limit, 180) if limit else 180)
    assert len(chosen.validation) == round(len(both) * validation)
    assert len(chosen.test) == (min(limit, 60) if limit else 60)
    for part in (chosen.train, chosen.validation, chosen.test):
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()


def test_the_choice_follows_from_the_seed() -> None:
    train, test = labels_of(50, 50), labels_of(30, 30)
    first, again, other = (split_indices(train, test, 2, recipe_of(seed, limit=40)) for seed in (1, 1, 2))
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_the_choice_is_no_prefix() -> None:
    picked = stratified(np.zeros(1000, dtype=np.int64), 100, 0, "data", 0)
    assert picked.max() > 900
    assert picked.min() < 100


def test_without_validation_all_images_are_trained_on() -> None:
    chosen = split_indices(labels_of(5, 5), labels_of(2, 2), 2, recipe_of(validation_fraction=0))
    np.testing.assert_array_equal(chosen.train, np.arange(10))
    assert len(chosen.validation) == 0


def test_overfit_validates_on_what_it_trains_on() -> None:
    train = labels_of(50, 50)
    chosen = split_indices(train, labels_of(5, 5), 2, recipe_of(overfit_images=8))
    np.testing.assert_array_equal(chosen.train, chosen.validation)
    assert np.bincount(train[chosen.train]).tolist() == [4, 4]
    assert len(chosen.test) == 10


@pytest.mark.parametrize(
    ("sizes", "data", "start"),
    [
        ((50, 50, 50), {"limit": 2}, "data.limit 2 is less than one image for each of 3 classes"),
        (
            (50, 50),
            {"validation_fraction": 0.995},
            "data.limit 0 and data.validation_fraction 0.995 leave 2 of 2 classes no image to train on",
        ),
        (
            (50, 50, 50),
            {"validation_fraction": 0.01},
            "data.validation_fraction 0.01 of 150 images leaves 1 of 3 classes out of the",
        ),
    ],
)
def test_an_impossible_split_is_refused(sizes: tuple[int, ...], data: dict[str, Any], start: str) -> None:
    with pytest.raises(UserError) as caught:
        split_indices(labels_of(*sizes), labels_of(*sizes), len(sizes), recipe_of(**data))
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    ("sizes", "data"),
    [
        ((990, 10), {"limit": 20, "validation_fraction": 0}),  # a fifth of an image of class 1
        ((2, 2, 2, 2), {"validation_fraction": 0.75}),  # six of eight images: two classes lose both theirs
    ],
)
def test_no_class_is_left_without_training_images(sizes: tuple[int, ...], data: dict[str, Any]) -> None:
    """Either the cut keeps one image of every class to train on, or it is refused."""
    train = labels_of(*sizes)
    try:
        chosen = split_indices(train, labels_of(*sizes), len(sizes), recipe_of(**data))
    except UserError:
        return
    assert set(train[chosen.train].tolist()) == set(range(len(sizes)))


def test_a_test_split_is_cut_before_all_else_and_does_not_depend_on_the_rest() -> None:
    labels = labels_of(60, 30, 10)
    plain = split_indices(labels, None, 3, recipe_of(validation_fraction=0.2, test_fraction=0.2))
    assert np.bincount(labels[plain.test]).tolist() == [12, 6, 2]
    together = np.concatenate([plain.train, plain.validation, plain.test])
    assert sorted(together.tolist()) == list(range(100))
    for data in ({"validation_fraction": 0}, {"validation_fraction": 0.5}, {"overfit_images": 8}):
        assert split_indices(labels, None, 3, recipe_of(test_fraction=0.2, **data)).test.tolist() == plain.test.tolist()
    limited = split_indices(labels, None, 3, recipe_of(validation_fraction=0, test_fraction=0.2, limit=10))
    assert set(limited.test.tolist()) < set(plain.test.tolist())
    assert (len(limited.test), len(limited.train) + len(limited.validation)) == (10, 10)
    assert not set(limited.train.tolist()) & set(plain.test.tolist())
    other = split_indices(labels, None, 3, recipe_of(seed=1, validation_fraction=0.2, test_fraction=0.2))
    assert other.test.tolist() == plain.test.tolist(), "seeds are compared on one test split"
    overfit = split_indices(labels, None, 3, recipe_of(overfit_images=30, test_fraction=0.2))
    assert not set(overfit.train.tolist()) & set(plain.test.tolist())


@pytest.mark.parametrize(
    ("fraction", "word"), [(0.05, "out of the test split.*raise"), (0.95, "out of training.*lower")]
)
def test_a_test_split_that_lacks_a_class_is_refused(fraction: float, word: str) -> None:
    with pytest.raises(UserError, match=rf"data\.test_fraction {fraction} of 44 images leaves 1 of 3 classes {word}"):
        split_indices(labels_of(20, 20, 4), None, 3, recipe_of(test_fraction=fraction))


def test_all_of_a_source_can_be_the_test_split() -> None:
    """To score a model on it; the plan of a training run refuses."""
    labels = labels_of(5, 1)
    found = split_indices(labels, None, 2, recipe_of(test_fraction=1))
    assert (found.test.tolist(), len(found.train), len(found.validation)) == (list(range(6)), 0, 0)
    with pytest.raises(UserError, match=r"data\.test_fraction 1 leaves no training images"):
        Plan(recipe_of(test_fraction=1), 0, 1)

"""data/splits.py: stratified cuts, drawn from the seed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import parse
from resnet_cifar.data.splits import SplitIndices, split_indices, stratified
from resnet_cifar.training.plan import Plan


def recipe_of(seed: int = 0, **data: Any) -> Recipe:
    return parse({"seed": seed, "data": {"source": "synthetic", **data}})


def labels_of(*sizes: int, seed: int = 0) -> np.ndarray:
    """This many labels of class 0, 1, ..., in a mixed order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def split(train: np.ndarray, test: np.ndarray | None, recipe: Recipe, **more: np.ndarray) -> SplitIndices:
    """The indices, for classes called a, b, ..."""
    labels = {"train": train, **({} if test is None else {"test": test}), **more}
    return split_indices(labels, "abcdefghij", recipe)


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
    chosen = split(labels_of(*[500] * 10), labels_of(*[100] * 10), recipe_of(validation_fraction=0.1))
    assert np.bincount(labels_of(*[500] * 10)[chosen.validation]).tolist() == [50] * 10
    assert np.bincount(labels_of(*[500] * 10)[chosen.train]).tolist() == [450] * 10
    np.testing.assert_array_equal(chosen.test, np.arange(1000))


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 5), st.floats(0.05, 0.9), st.integers(0, 200))
def test_train_and_validation_are_disjoint_and_complete(seed: int, validation: float, limit: int) -> None:
    train, test = labels_of(80, 60, 40), labels_of(20, 20, 20)
    try:
        chosen = split(train, test, recipe_of(seed, validation_fraction=validation, limit=limit))
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
    first, again, other = (split(train, test, recipe_of(seed, limit=40)) for seed in (1, 1, 2))
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_the_choice_is_no_prefix() -> None:
    picked = stratified(np.zeros(1000, dtype=np.int64), 100, 0, "data", 0)
    assert picked.max() > 900
    assert picked.min() < 100


def test_without_validation_all_images_are_trained_on() -> None:
    chosen = split(labels_of(5, 5), labels_of(2, 2), recipe_of(validation_fraction=0))
    np.testing.assert_array_equal(chosen.train, np.arange(10))
    assert len(chosen.validation) == 0


def test_overfit_validates_on_what_it_trains_on() -> None:
    train = labels_of(50, 50)
    chosen = split(train, labels_of(5, 5), recipe_of(overfit_images=8))
    np.testing.assert_array_equal(chosen.train, chosen.validation)
    assert np.bincount(train[chosen.train]).tolist() == [4, 4]
    assert len(chosen.test) == 10


@pytest.mark.parametrize(
    ("sizes", "data", "said"),
    [
        ((50, 50, 50), {"limit": 2}, "data.limit 2 is less than two images for each of 3 classes.*raise it to 6"),
        ((50, 50, 50), {"limit": 2, "validation_fraction": 0}, "limit 2 is less than one image.*raise it to 3"),
        (
            (50, 50),
            {"validation_fraction": 0.995},
            "data.validation_fraction 0.995 of 100 .*leaves 0 to.*lower it to 0.98",
        ),
        ((50, 50, 50), {"validation_fraction": 0.01}, "fraction 0.01 of 150 images leaves 1 of 3 classes.* to 0.02"),
    ],
)
def test_an_impossible_split_is_refused_and_what_is_advised_works(
    sizes: tuple[int, ...], data: dict[str, Any], said: str
) -> None:
    labels = labels_of(*sizes)
    with pytest.raises(UserError, match=said):
        split(labels, labels, recipe_of(**data))
    assert set(labels[following_advice(labels, labels, data).train]) == set(range(len(sizes)))


def following_advice(train: np.ndarray, test: np.ndarray | None, data: dict[str, Any]) -> SplitIndices:
    """The split after at most two changes of fields, each as a sentence says."""
    for _ in range(2):
        try:
            return split(train, test, recipe_of(**data))
        except UserError as error:
            field, value = re.match(r"data\.(\w+) .*?it to ([\d.]+)", str(error)).groups()
            data = data | {field: value}
    return split(train, test, recipe_of(**data))


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(3, 60), min_size=2, max_size=8), st.floats(0.01, 0.95), st.floats(0.01, 0.95))
def test_classes_of_three_images_or_more_are_in_every_part(sizes: list[int], test: float, validation: float) -> None:
    """Or a fraction is out of range, and the one that is named instead is not."""
    labels = labels_of(*sizes)
    chosen = following_advice(labels, None, {"test_fraction": test, "validation_fraction": validation})
    for part in (chosen.train, chosen.validation, chosen.test):
        assert set(labels[part].tolist()) == set(range(len(sizes)))


@pytest.mark.parametrize(
    ("sizes", "data", "said"),
    [
        ((30, 30, 1), {}, "class 'c' has 1 image and needs 3, one for each of training, validation and test: add"),
        (
            (30, 2, 1),
            {},
            r"the classes 'b' \(2\), 'c' \(1\) need 3 each, one for each of training, validation and test",
        ),
        (
            (30, 30, 1),
            {"validation_fraction": 0},
            "class 'c' has 1 image and needs 2, one for each of training and test",
        ),
    ],
)
def test_a_class_with_too_few_images_is_named(sizes: tuple[int, ...], data: dict[str, Any], said: str) -> None:
    for fraction in (0.1, 0.5, 0.9):
        with pytest.raises(UserError, match=said):
            split(labels_of(*sizes), None, recipe_of(test_fraction=fraction, **data))
    needed = int(re.search(r"needs? (\d)", said)[1])
    enough = labels_of(*(max(size, needed) for size in sizes))  # as the sentence says
    chosen = split(enough, None, recipe_of(**data))
    assert [set(enough[part]) for part in (chosen.train, chosen.test)] == [{0, 1, 2}] * 2
    large = np.flatnonzero(labels_of(*sizes) == 0)  # the other classes removed
    assert len(split(labels_of(*sizes)[large], None, recipe_of(**data)).test) == 3


def test_a_validation_split_of_the_source_is_used_and_limited_like_the_others() -> None:
    train, validation, test = labels_of(60, 40), labels_of(12, 8, seed=1), labels_of(6, 4)
    chosen = split(train, test, recipe_of(), validation=validation)
    assert [len(part) for part in (chosen.train, chosen.validation, chosen.test)] == [100, 20, 10]
    chosen = split(train, test, recipe_of(limit=10), validation=validation)
    assert [np.bincount(labels[part]).tolist() for labels, part in ((train, chosen.train), (test, chosen.test))] == [
        [6, 4],
        [6, 4],
    ]
    assert np.bincount(validation[chosen.validation]).tolist() == [6, 4]
    assert not np.array_equal(chosen.validation, split(train, test, recipe_of(1, limit=10), validation=validation))
    without_test = split(train, None, recipe_of(), validation=validation)
    assert [len(part) for part in (without_test.train, without_test.validation, without_test.test)] == [90, 20, 10]
    overfit = split(train, test, recipe_of(overfit_images=8), validation=validation)
    np.testing.assert_array_equal(overfit.train, overfit.validation)


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
        chosen = split(train, labels_of(*sizes), recipe_of(**data))
    except UserError:
        return
    assert set(train[chosen.train].tolist()) == set(range(len(sizes)))


def test_a_test_split_is_cut_before_all_else_and_does_not_depend_on_the_rest() -> None:
    labels = labels_of(60, 30, 10)
    plain = split(labels, None, recipe_of(validation_fraction=0.2, test_fraction=0.2))
    assert np.bincount(labels[plain.test]).tolist() == [12, 6, 2]
    together = np.concatenate([plain.train, plain.validation, plain.test])
    assert sorted(together.tolist()) == list(range(100))
    for data in ({"validation_fraction": 0}, {"validation_fraction": 0.5}, {"overfit_images": 8}):
        assert split(labels, None, recipe_of(test_fraction=0.2, **data)).test.tolist() == plain.test.tolist()
    limited = split(labels, None, recipe_of(validation_fraction=0, test_fraction=0.2, limit=10))
    assert set(limited.test.tolist()) < set(plain.test.tolist())
    assert (len(limited.test), len(limited.train) + len(limited.validation)) == (10, 10)
    assert not set(limited.train.tolist()) & set(plain.test.tolist())
    other = split(labels, None, recipe_of(seed=1, validation_fraction=0.2, test_fraction=0.2))
    assert other.test.tolist() == plain.test.tolist(), "seeds are compared on one test split"
    overfit = split(labels, None, recipe_of(overfit_images=30, test_fraction=0.2))
    assert not set(overfit.train.tolist()) & set(plain.test.tolist())


@pytest.mark.parametrize(
    ("fraction", "said"),
    [(0.05, "leaves 1 of 3 classes out of the test split: raise it to 0.06818"), (0.95, "lower it to 0.8636")],
)
def test_a_test_split_that_lacks_a_class_is_refused(fraction: float, said: str) -> None:
    with pytest.raises(UserError, match=rf"data\.test_fraction {fraction} .*{said}"):
        split(labels_of(20, 20, 4), None, recipe_of(test_fraction=fraction))


def test_all_of_a_source_can_be_the_test_split() -> None:
    """To score a model on it; the plan of a training run refuses."""
    labels = labels_of(5, 1)
    found = split(labels, None, recipe_of(test_fraction=1))
    assert (found.test.tolist(), len(found.train), len(found.validation)) == (list(range(6)), 0, 0)
    with pytest.raises(UserError, match=r"data\.test_fraction 1 leaves no training images"):
        Plan(recipe_of(test_fraction=1), 0, 1)

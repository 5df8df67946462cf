"""The images of a run: `data.limit` and the splits that are cut off, stratified by class and drawn from the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resnet_cifar import rng
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.data.sources.base import shorten


@dataclass(frozen=True)
class SplitIndices:
    """Sorted indices, int64, in the source's splits of these names; `validation` and `test` are indices in its training
    split if it has none of their own.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_indices(labels: dict[str, np.ndarray], classes: Sequence[str], recipe: Recipe) -> SplitIndices:
    """The images of `recipe`. `labels`: of the source's splits `train`, and `validation` and `test` if it has them.

    Raises UserError if a split that is cut off, or what is left to train on, lacks a class.
    """
    seed, data, train = recipe.seed, recipe.data, labels["train"]
    cuts_validation = "validation" not in labels and data.validation_fraction > 0 and not data.overfit_images
    if "test" in labels or data.test_fraction < 1:
        needs = ["training", *["validation"] * cuts_validation, *["test"] * ("test" not in labels)]
        _check_sizes(train, classes, needs, data.source)

    def limited(role: str, pool: np.ndarray, number: int, least: int = 0) -> np.ndarray:
        own = labels.get(role, train)[pool]
        return pool[stratified(own, data.limit or len(pool), seed, "data", number, least)]

    if "test" in labels:
        pool, test = np.arange(len(train)), np.arange(len(labels["test"]))
    else:
        pool, test = _cut_test(train, classes, recipe, keep=1 + cuts_validation)
    test = limited("test", test, 1)
    if not len(pool):  # for evaluation only
        return SplitIndices(pool, pool, test)
    if data.overfit_images:
        same = pool[stratified(train[pool], data.overfit_images, seed, "data", 0)]
        return SplitIndices(same, same, test)
    present = len(np.unique(train[pool]))
    if data.limit and data.limit < present * (1 + cuts_validation):
        raise UserError(
            f"data.limit {data.limit} is less than {'two images' if cuts_validation else 'one image'} for each of "
            f"{present} classes{' (training and validation)' * cuts_validation}: raise it to "
            f"{present * (1 + cuts_validation)} or more"
        )
    subset = limited("train", pool, 0, 1 + cuts_validation)
    if "validation" in labels:
        return SplitIndices(subset, limited("validation", np.arange(len(labels["validation"])), 2), test)
    held_out = round(len(subset) * data.validation_fraction)
    if cuts_validation:
        _check_fraction(
            f"data.validation_fraction {data.validation_fraction:g}",
            held_out,
            subset,
            present,
            1,
            "the validation split",
        )
    held_out_rows = stratified(train[subset], held_out, seed, "split", 0, int(cuts_validation), 1)
    return SplitIndices(np.delete(subset, held_out_rows), subset[held_out_rows], test)


def _cut_test(labels: np.ndarray, classes: Sequence[str], recipe: Recipe, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The training images and a test split of a source that has none; `keep`: images of a class that are left."""
    count = round(len(labels) * recipe.data.test_fraction)
    if recipe.data.test_fraction < 1:
        _check_fraction(
            f"data.test_fraction {recipe.data.test_fraction:g}",
            count,
            labels,
            len(np.unique(labels)),
            keep,
            "the test split",
        )
    # The same for every seed, so that runs are comparable and weights can be shared between runs.
    test = stratified(labels, count, 0, "split", 1, 1, keep)
    return np.delete(np.arange(len(labels)), test), test


def _check_sizes(labels: np.ndarray, classes: Sequence[str], needs: list[str], source: str) -> None:
    """Raises UserError if a class has fewer images than the parts that need one."""
    sizes = np.bincount(labels, minlength=len(classes))
    small = [f"{classes[label]!r} ({sizes[label]})" for label in np.flatnonzero((sizes > 0) & (sizes < len(needs)))]
    if not small:
        return
    each = f"{', '.join(needs[:-1])} and {needs[-1]}"
    if len(small) == 1:
        name, count = small[0].rsplit(" (", 1)
        what = f"class {name} has {count[:-1]} image{'s' * (count != '1)')} and needs"
    else:
        what = f"the classes {shorten(small)} need"
    raise UserError(
        f"data.source {source!r}: {what} {len(needs)}{' each' * (len(small) > 1)}, one for each of {each}: add images, "
        f"or remove the class{'es' * (len(small) > 1)} from the source"
    )


def _check_fraction(field: str, count: int, images: np.ndarray, classes: int, keep: int, part: str) -> None:
    """Raises UserError if `count` of the images are too few for one of every class, or leave too few of them."""
    most = len(images) - keep * classes
    if count < classes:
        raise UserError(
            f"{field} of {len(images)} images leaves {classes - count} of {classes} classes out of {part}: raise it to "
            f"{classes / len(images):.4g}" + ", or set it to 0" * (part == "the validation split")
        )
    if count > most:
        raise UserError(
            f"{field} of {len(images)} images leaves {len(images) - count} to train on, and {classes} classes need "
            f"{'one' if keep == 1 else 'two'} each: lower it to {most / len(images):.4g}"
        )


def stratified(
    labels: np.ndarray, count: int, seed: int, purpose: str, number: int, least: int = 0, keep: int = 0
) -> np.ndarray:
    """`count` sorted indices of `labels`, drawn from the seed, proportional to class sizes (largest remainders).

    If a class would get fewer than `least`, or leave fewer than `keep`, the shares are adjusted as little as possible.
    """
    if count >= len(labels):
        return np.arange(len(labels))
    order = rng.permutation(seed, purpose, number, len(labels))
    sizes = np.bincount(labels)
    exact = sizes * count / len(labels)
    quota = np.floor(exact).astype(np.int64)
    most_owed = np.argsort(-(exact - quota), kind="stable")
    quota[most_owed[: count - quota.sum()]] += 1
    high = np.maximum(sizes - keep, 0)
    low = np.minimum(least, high)
    quota = quota.clip(low, high)
    while (excess := quota.sum() - count) != 0:
        room = quota > low if excess > 0 else quota < high
        if not room.any():
            break
        furthest = np.where(room, (quota - exact) * np.sign(excess), -np.inf).argmax()
        quota[furthest] -= np.sign(excess)
    picked = [order[labels[order] == label][:share] for label, share in enumerate(quota)]
    return np.sort(np.concatenate(picked))

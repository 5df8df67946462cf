"""The images of a run: `data.limit` and the validation split, both stratified by class and drawn from the seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet_cifar import rng
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe


@dataclass(frozen=True)
class SplitIndices:
    """Sorted indices, int64: `train` and `validation` of the source's training images, `test` of its test images (of
    its training images if it has no test split).
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_indices(
    train_labels: np.ndarray, test_labels: np.ndarray | None, classes: int, recipe: Recipe
) -> SplitIndices:
    """The images of `recipe`. Raises UserError if a split lacks a class."""
    seed, data = recipe.seed, recipe.data
    if test_labels is None:
        pool, test = _cut_test(train_labels, classes, recipe)
    else:
        pool, test = np.arange(len(train_labels)), np.arange(len(test_labels))
    labels = train_labels if test_labels is None else test_labels
    test = test[stratified(labels[test], data.limit or len(test), seed, "data", 1)]
    if not len(pool):  # for evaluation only
        return SplitIndices(pool, pool, test)
    if data.overfit_images:
        same = pool[stratified(train_labels[pool], data.overfit_images, seed, "data", 0)]
        return SplitIndices(same, same, test)
    if data.limit and data.limit < classes:
        raise UserError(f"data.limit {data.limit} is less than one image for each of {classes} classes: raise it")
    subset = pool[stratified(train_labels[pool], data.limit or len(pool), seed, "data", 0)]
    held_out = round(len(subset) * data.validation_fraction)
    held_out_rows = stratified(train_labels[subset], held_out, seed, "split", 0)
    validation = subset[held_out_rows]
    train = np.delete(subset, held_out_rows)
    everything = set(train_labels[pool].tolist())
    if lost := everything - set(train_labels[train].tolist()):
        raise UserError(
            f"data.limit {data.limit} and data.validation_fraction {data.validation_fraction:g} leave {len(lost)} of "
            f"{classes} classes no image to train on: raise the former or lower the latter"
        )
    if data.validation_fraction and (lost := everything - set(train_labels[validation].tolist())):
        raise UserError(
            f"data.validation_fraction {data.validation_fraction:g} of {len(subset)} images leaves {len(lost)} of "
            f"{classes} classes out of the validation split: raise it, or set it to 0"
        )
    return SplitIndices(train, validation, test)


def _cut_test(labels: np.ndarray, classes: int, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """The training images and a test split of a source that has none."""
    fraction = recipe.data.test_fraction
    # The same for every seed, so that runs are comparable and weights can be shared between runs.
    test = stratified(labels, round(len(labels) * fraction), 0, "split", 1)
    pool = np.delete(np.arange(len(labels)), test)
    sizes = np.bincount(labels)
    for part, name in ((test, "the test split"), (pool, "training")):
        lost = len(set(labels.tolist()) - set(labels[part].tolist()))
        if lost and len(pool):
            raise UserError(
                f"data.test_fraction {fraction:g} of {len(labels)} images leaves {lost} of {classes} classes out of "
                f"{name}, the smallest of which has {sizes[sizes > 0].min()} images: "
                f"{'raise' if part is test else 'lower'} it"
            )
    return pool, test


def stratified(labels: np.ndarray, count: int, seed: int, purpose: str, number: int) -> np.ndarray:
    """`count` sorted indices of `labels`, drawn from the seed, proportional to class sizes (largest remainders)."""
    if count >= len(labels):
        return np.arange(len(labels))
    order = rng.permutation(seed, purpose, number, len(labels))
    sizes = np.bincount(labels)
    exact = sizes * count / len(labels)
    quota = np.floor(exact).astype(np.int64)
    most_owed = np.argsort(-(exact - quota), kind="stable")
    quota[most_owed[: count - quota.sum()]] += 1
    picked = [order[labels[order] == label][:share] for label, share in enumerate(quota)]
    return np.sort(np.concatenate(picked))

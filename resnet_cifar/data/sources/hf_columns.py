"""The image and label columns of a data set of `datasets`, and its class names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import SourceData, Split, choose_splits, encode_labels

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_LABELS = ("label", "labels", "class", "target", "category")


def source_data(loaded: DatasetDict, data: Data) -> SourceData:
    """The training split of `loaded` and, if one has labels, its test split. Raises UserError."""
    train_name, candidates = choose_splits(loaded, data)
    train = loaded[train_name]
    image, label = _image_column(train, data), _label_column(train, data)
    test_name = next((name for name in candidates if _is_labelled(loaded[name], label)), None)
    if data.splits.test and test_name is None:
        raise UserError(f"data.splits.test {data.splits.test!r} has no labels: name another, or remove it")
    test = None if test_name is None else loaded[test_name]
    classes, train_labels, test_labels = _labels(train, test, label, data)
    return SourceData(
        train=Split(train_name, _images(train, image, data), train_labels),
        test=None if test is None else Split(test_name, _images(test, image, data), test_labels),
        classes=classes,
    )


def _image_column(split: Dataset, data: Data) -> str:
    from datasets import Image as ImageFeature

    names = split.column_names
    if data.columns.image:
        return _named("image", data.columns.image, names, data)
    images = [name for name in names if isinstance(split.features[name], ImageFeature)]
    # Parquet files that `datasets` did not write lack its schema.
    images = images or [name for name in names if _fields(split.features[name]) == {"bytes", "path"}]
    if len(images) != 1:
        found = "no image column" if not images else f"{len(images)} image columns"
        raise UserError(
            f"data.source {data.source!r} has the columns {names}, {found}: name the one to use with "
            "--data.columns.image"
        )
    return images[0]


def _label_column(split: Dataset, data: Data) -> str:
    """The one with the most classes (CIFAR-100 has 20 coarse and 100 fine ones), or one with a common name."""
    from datasets import ClassLabel

    names = split.column_names
    if data.columns.label:
        return _named("label", data.columns.label, names, data)
    sizes = {name: f.num_classes for name, f in split.features.items() if isinstance(f, ClassLabel)}
    if sizes:
        return max(sizes, key=sizes.__getitem__)
    for name in _LABELS:
        if name in names and _kind(split, name):
            return name
    raise UserError(
        f"data.source {data.source!r} has the columns {names}, none of them a label column: name it with "
        "--data.columns.label"
    )


def _named(role: str, name: str, names: list[str], data: Data) -> str:
    if name not in names:
        raise UserError(
            f"data.columns.{role} {name!r} is not one of the columns {names} of data.source {data.source!r}"
        )
    return name


def _fields(feature: object) -> set[str]:
    return set(feature) if isinstance(feature, dict) else set()


def _kind(split: Dataset, column: str) -> str:
    """`number` or `string`, or "" for values that cannot be labels."""
    dtype = str(getattr(split.features[column], "dtype", ""))
    return "number" if "int" in dtype or dtype == "bool" else "string" if "string" in dtype else ""


def _is_labelled(split: Dataset, label: str) -> bool:
    """Whether any image has a label; an empty split, which is refused later, counts as labeled."""
    if label not in split.column_names:
        return False
    values = _values(split, label)
    return not len(values) or bool((values != "" if values.dtype.kind == "U" else values >= 0).any())


def _labels(
    train: Dataset, test: Dataset | None, label: str, data: Data
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """Class names and the labels of both splits."""
    if not _kind(train, label):
        raise UserError(
            f"data.columns.label {label!r} of data.source {data.source!r} holds {train.features[label]}: name a column "
            "of integers or names"
        )
    names = getattr(train.features[label], "names", None)
    values = [None if split is None else _values(split, label) for split in (train, test)]
    if not names:
        if values[1] is not None and values[1].dtype.kind != values[0].dtype.kind:
            raise UserError(
                f"data.source {data.source!r}: the column {label!r} of its splits differs in type: convert one of them"
            )
        return encode_labels(*values)
    other_names = None if test is None else getattr(test.features[label], "names", None)
    if other_names and other_names != names:  # the splits were written one by one
        places = np.array([names.index(name) if name in names else -1 for name in other_names] + [-1])
        values[1] = places[np.where(values[1] < len(other_names), values[1], -1)]
    return tuple(names), *values


def _values(split: Dataset, label: str) -> np.ndarray:
    """Labels: int64 [n], -1 if missing, or strings, "" if missing. Does not read the images."""
    column = split.select_columns([label]).with_format("arrow")[:][label]
    if _kind(split, label) == "string":
        return np.array([value or "" for value in column.to_pylist()], dtype=np.str_)
    return np.array([-1 if value is None else value for value in column.to_pylist()], dtype=np.int64)


def _images(split: Dataset, image: str, data: Data) -> object:
    """The image column, still encoded; read when it is sliced."""
    from datasets import Image as ImageFeature

    try:
        return split.cast_column(image, ImageFeature(decode=False)).select_columns([image])[image]
    except (ValueError, TypeError, KeyError, NotImplementedError):
        found = split.features.get(image, "nothing")
        raise UserError(
            f"data.columns.image {image!r} of data.source {data.source!r} holds {found}: name a column of encoded "
            "images or their paths"
        ) from None

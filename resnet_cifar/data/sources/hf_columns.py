"""The image and label columns of a data set of `datasets`, and its class names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import (
    SourceData,
    Split,
    choose_held_out,
    choose_train,
    encode_labels,
    is_label,
    shorten,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_LABELS = ("label", "labels", "class", "target", "category")


def source_data(loaded: DatasetDict, data: Data) -> SourceData:
    """The training split of `loaded`, and those of its validation and test splits that have labels.

    Raises UserError.
    """
    train_name = choose_train(loaded, data)
    train = loaded[train_name]
    image, label = _image_column(train, data), _label_column(train, data)
    chosen, unused_splits = choose_held_out(loaded, train_name, data, lambda name: _problem(loaded[name], label))
    classes, labels = _labels({role: loaded[name] for role, name in chosen.items()}, label, data)
    splits = {role: Split(name, _images(loaded[name], image, data), labels[role]) for role, name in chosen.items()}
    others = [repr(name) for name in train.column_names if name not in (image, label)]
    unused = {"splits": unused_splits, "columns": others}
    remarks = tuple(f"not used: the {what} {shorten(names)}" for what, names in unused.items() if names)
    return SourceData(splits["train"], splits.get("test"), classes, remarks, splits.get("validation"), True)


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
    """Of the columns with class names the one with a common name, or the most classes (CIFAR-100 has 20 coarse and 100
    fine ones); without class names, one with a common name.
    """
    from datasets import ClassLabel

    names = split.column_names
    if data.columns.label:
        return _named("label", data.columns.label, names, data)
    sizes = {name: f.num_classes for name, f in split.features.items() if isinstance(f, ClassLabel)}
    if sizes:
        return next((name for name in _LABELS if name in sizes), max(sizes, key=sizes.__getitem__))
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
    return "number" if "int" in dtype or dtype in ("bool", "null") else "string" if "string" in dtype else ""


def _problem(split: Dataset, label: str) -> str:
    """Why images cannot be held out from a split: it is empty, or none has a label."""
    if not len(split):
        return "is empty"
    if label not in split.column_names:
        return "has no labels"
    is_usable = not _kind(split, label) or is_label(_values(split, label)).any()  # `_labels` refuses other types
    return "" if is_usable else "has no labels"


def _labels(splits: dict[str, Dataset], label: str, data: Data) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, and the labels of every split."""
    train = splits["train"]
    if not _kind(train, label):
        raise UserError(
            f"data.columns.label {label!r} of data.source {data.source!r} holds {train.features[label]}: name a column "
            "of integers or names"
        )
    names = getattr(train.features[label], "names", None)
    kinds = {_kind(split, label) for split in splits.values()}
    if "" in kinds or (len(kinds) > 1 and not names):
        raise UserError(
            f"data.source {data.source!r}: the column {label!r} of its splits differs in type: convert one of them"
        )
    values = {role: _values(split, label) for role, split in splits.items()}
    if not names:
        classes, encoded = encode_labels(*values.values())
        return classes, dict(zip(values, encoded, strict=True))
    places = {name: place for place, name in enumerate(names)}
    for role, split in splits.items():  # which were written one by one
        other_names = getattr(split.features[label], "names", None)
        if _kind(split, label) == "string":
            values[role] = np.array([places.get(name, -1) for name in values[role].tolist()])
        elif other_names and other_names != names:
            ours = np.array([places.get(name, -1) for name in other_names] + [-1])
            values[role] = ours[np.where(values[role] < len(other_names), values[role], -1)]
    return tuple(names), values


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

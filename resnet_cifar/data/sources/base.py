"""What a source of images provides, and what the sources share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data

TRAIN = ("train", "training")
_TEST = ("test", "testing", "validation", "valid", "val", "dev", "eval")


@dataclass(frozen=True)
class Split:
    """A split and its name in the source.

    `images`: encoded; its slices are lists of what `image_io.to_rgb` accepts. `labels`: int64 [n], -1 if unlabeled.
    """

    name: str
    images: Sequence[Any]
    labels: np.ndarray


@dataclass(frozen=True)
class SourceData:
    """The contents of a source; `remark` is shown to the user."""

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    remark: str = ""


class Source(Protocol):
    """A kind of source: a module of this package, listed in `registry`."""

    FIELDS: tuple[str, ...]
    """The fields config_name, splits and columns of `data` that apply to such a source."""

    def identity(self, data: Data) -> str:
        """The key of the cache entry: differs whenever the images may have changed."""

    def read(self, data: Data) -> SourceData:
        """All images, not yet decoded, and their labels. Raises UserError."""


class FolderSource(Source, Protocol):
    """A kind of source that is a folder."""

    def recognizes(self, folder: Path) -> bool:
        """Whether the folder is of this kind."""


def file_stamps(root: Path) -> str:
    """Path, size and modification time of a file, or of every file in a folder (symbolic links are followed)."""
    root = root.expanduser().resolve()
    paths = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names] or [root]
    stamps = [
        (str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(paths)
        if path.is_file()
    ]
    return f"{root} {stamps}"


def choose_splits(names: Iterable[str], data: Data) -> tuple[str, list[str]]:
    """The training split and the candidates for the test split, best first. Raises UserError."""
    names, wanted = list(names), data.splits
    fix = "name them with --data.splits.train and --data.splits.test"
    for role, name in (("train", wanted.train), ("test", wanted.test)):
        if name and name not in names:
            raise UserError(
                f"data.splits.{role} {name!r} is not one of the splits {names} of data.source {data.source!r}"
            )
    only = names[0] if len(names) == 1 else None
    known = {name.lower(): name for name in names}
    train = wanted.train or next((known[word] for word in TRAIN if word in known), only)
    if train is None:
        raise UserError(f"data.source {data.source!r} has the splits {names}, none called train: {fix}")
    if wanted.test == train:
        raise UserError(
            f"data.splits.test {train!r} is also the training split: name another, or remove it to hold out a part"
        )
    return train, [wanted.test] if wanted.test else [known[word] for word in _TEST if known.get(word, train) != train]


def encode_labels(train: np.ndarray, test: np.ndarray | None) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """Class names (the sorted training values) and the labels of both splits, int64.

    Values are integers or strings. Negative numbers, empty strings and values that `train` lacks become -1.
    """
    known = np.unique(train[_is_label(train)])

    def encode(values: np.ndarray) -> np.ndarray:
        if not len(known):
            return np.full(len(values), -1)
        places = np.searchsorted(known, values).clip(max=len(known) - 1)
        return np.where(_is_label(values) & (known[places] == values), places, -1)

    return tuple(str(value) for value in known), encode(train), None if test is None else encode(test)


def _is_label(values: np.ndarray) -> np.ndarray:
    return values != "" if values.dtype.kind == "U" else values >= 0

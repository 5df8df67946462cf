"""A name -> pictures and labels. One module a kind, each with

READS                        which of the fields name, splits and columns of `data` say something about such a source
identity(data) -> str        what the cache is keyed by: changes whenever the images may have changed
read(data) -> Contents       every picture, not decoded yet, and its label. Raises UserError
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data

TRAIN = ("train", "training")
_TEST = ("test", "testing", "validation", "valid", "val", "dev", "eval")


@dataclass(frozen=True)
class Split:
    """A split called `name` in its source.

    `pictures`: slices of it are lists of what `pixels.rgb` takes; `labels`: int64 [n], -1 where there is none.
    """

    name: str
    pictures: Sequence[Any]
    labels: np.ndarray


@dataclass(frozen=True)
class SourceData:
    """What a source holds; `remark` is something that a person should know about it."""

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    remark: str = ""


def stamp(root: Path) -> str:
    """The path, size and time of change of a file, or of every file of a folder."""
    root = root.expanduser().resolve()
    # Not rglob, which passes over folders that are links.
    below = (
        Path(parquet_folder, file) for parquet_folder, _, files in os.walk(root, followlinks=True) for file in files
    )
    files = sorted(path for path in below if path.is_file()) if root.is_dir() else [root]
    stamps = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{root} {stamps}"


def choose_splits(names: Iterable[str], data: Data) -> tuple[str, list[str]]:
    """The split to train on, and those that may be the test split, best first. Raises UserError."""
    names, wanted = list(names), data.splits
    mend = "name them with --data.splits.train and --data.splits.test"
    for role, name in (("train", wanted.train), ("test", wanted.test)):
        if name and name not in names:
            raise UserError(f"data.splits.{role} {name!r} is none of the splits {names} of data.source {data.source!r}")
    only = names[0] if len(names) == 1 else None
    known = {name.lower(): name for name in names}
    train = wanted.train or next((known[word] for word in TRAIN if word in known), only)
    if train is None:
        raise UserError(f"data.source {data.source!r} has the splits {names}, none called train: {mend}")
    if wanted.test == train:
        raise UserError(
            f"data.splits.test {train!r} is trained on too: name another, or leave it out to cut a part off"
        )
    return train, [wanted.test] if wanted.test else [known[word] for word in _TEST if known.get(word, train) != train]


def encode_labels(train: np.ndarray, test: np.ndarray | None) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """Class names, and the labels of both splits, int64: the training values, sorted, become classes.

    Values are whole numbers or words; a negative number or an empty word is none, and so (-1) is what train lacks.
    """
    known = np.unique(train[_present(train)])

    def labels(values: np.ndarray) -> np.ndarray:
        if not len(known):
            return np.full(len(values), -1)
        places = np.searchsorted(known, values).clip(max=len(known) - 1)
        return np.where(_present(values) & (known[places] == values), places, -1)

    return tuple(str(value) for value in known), labels(train), None if test is None else labels(test)


def _present(values: np.ndarray) -> np.ndarray:
    return values != "" if values.dtype.kind == "U" else values >= 0

"""What a source of images provides, and what the sources share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data

TRAIN = ("train", "training")
VALIDATION = ("validation", "valid", "val", "dev", "eval")
TEST = ("test", "testing")
_SHOWN = 5  # names in a message


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
    """The contents of a source; `remarks` are shown to the user and name everything that is not used.

    `has_columns`: whether images and labels come from columns of a table, which data.columns can name. `incomplete`:
    whether images that the source lists do not exist and were skipped.
    """

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    validation: Split | None = None
    has_columns: bool = False
    incomplete: bool = False

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by their roles: `train`, and `validation` and `test` if the source has them."""
        roles = {"train": self.train, "validation": self.validation, "test": self.test}
        return {role: split for role, split in roles.items() if split is not None}


class Source(Protocol):
    """A kind of source: a module of this package, listed in `registry`."""

    FIELDS: tuple[str, ...]
    """The fields config_name, revision, splits and columns of `data` that apply to such a source."""

    def identity(self, data: Data) -> str:
        """The key of the cache entry: differs whenever the images may have changed."""

    def read(self, data: Data) -> SourceData:
        """All images, not yet decoded, and their labels. Raises UserError."""


class FolderSource(Source, Protocol):
    """A kind of source that is a folder."""

    def recognizes(self, folder: Path) -> bool:
        """Whether the folder is of this kind."""


class Tree(Protocol):
    """Files below a folder or in an archive, by their paths, without hidden folders."""

    files: list[str]
    folders: list[str]
    remarks: tuple[str, ...]

    def read(self, file: str) -> bytes:
        """The content of a file."""

    def images(self, files: Sequence[str]) -> Sequence[Any]:
        """What `image_io.to_rgb` accepts, for every file."""


def check_fields(data: Data, fields: tuple[str, ...]) -> None:
    """Raises UserError for fields that do not apply to a kind of source, whose `fields` are those that do."""
    given = {
        "config_name": data.config_name,
        "revision": data.revision,
        "splits": data.splits.train or data.splits.validation or data.splits.test,
        "columns": data.columns.image or data.columns.label,
    }
    for name, value in given.items():
        if value and name not in fields:
            raise UserError(f"data.{name} {value!r} does not apply to data.source {data.source!r}: remove it")


def choose_train(names: Iterable[str], data: Data) -> str:
    """The training split: the one that data.splits names, one called train, or the only one. Raises UserError."""
    names, wanted = list(names), data.splits
    given = {"train": wanted.train, "validation": wanted.validation, "test": wanted.test}
    for role, name in given.items():
        if name and name not in names:
            raise UserError(
                f"data.splits.{role} {name!r} is not one of the splits {names} of data.source {data.source!r}"
            )
    only = names[0] if len(names) == 1 else None
    train = wanted.train or _named_like(TRAIN, names) or only
    if train is None:
        raise UserError(
            f"data.source {data.source!r} has the splits {names}, none called train: name them with "
            "--data.splits.train, --data.splits.validation and --data.splits.test"
        )
    return train


def choose_held_out(
    names: Iterable[str], train: str, data: Data, problem: Callable[[str], str]
) -> tuple[dict[str, str], list[str]]:
    """The splits' names by role: `train`, and `validation` and `test` as far as there are any; and the unused ones.

    `problem(name)`: why a split cannot be used, "" if it can. Raises UserError.
    """
    names, wanted = list(names), data.splits
    chosen, reasons = {"train": train}, {}
    for role, given, other in (("validation", wanted.validation, wanted.test), ("test", wanted.test, "")):
        if not given:
            words = VALIDATION if role == "validation" else TEST
            free = [name for name in names if name not in (*chosen.values(), other)]
            candidates = [found for word in words if (found := _named_like((word,), free))]
            reasons |= {candidate: problem(candidate) for candidate in candidates}
            if usable := [name for name in candidates if not reasons[name]]:
                chosen[role] = usable[0]
            continue
        if taken := next((before for before, used in chosen.items() if used == given), None):
            raise UserError(
                f"data.splits.{role} {given!r} is also the {'training' if taken == 'train' else taken} split: name "
                "another, or remove it to hold out a part of the training images"
            )
        if why := problem(given):
            raise UserError(f"data.splits.{role} {given!r} {why}: name another, or remove it")
        chosen[role] = given
    unused = [name for name in names if name not in chosen.values()]
    return chosen, [f"{name!r}" + (f" ({reasons[name]})" if reasons.get(name) else "") for name in unused]


def _named_like(words: Iterable[str], names: Iterable[str]) -> str | None:
    known = {name.lower(): name for name in names}
    return next((known[word] for word in words if word in known), None)


def shorten(names: Iterable[str], shown: int = _SHOWN) -> str:
    """`a, b, c`, or the first ones and the number of all."""
    names = list(names)
    return ", ".join(names[:shown]) + f", ... ({len(names):,} in all)" * (len(names) > shown)


def encode_labels(train: np.ndarray, *others: np.ndarray) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Class names (the sorted training values) and the labels of all splits, int64.

    Values are integers or strings. Negative numbers, empty strings and values that `train` lacks become -1.
    """
    known = np.unique(train[is_label(train)])

    def encode(values: np.ndarray) -> np.ndarray:
        if not len(known):
            return np.full(len(values), -1)
        places = np.searchsorted(known, values).clip(max=len(known) - 1)
        return np.where(is_label(values) & (known[places] == values), places, -1)

    return tuple(str(value) for value in known), [encode(values) for values in (train, *others)]


def is_label(values: np.ndarray) -> np.ndarray:
    """Which values (integers or strings, [n]) are labels: neither negative nor empty."""
    return values != "" if values.dtype.kind == "U" else values >= 0

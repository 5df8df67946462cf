"""A name -> pictures and labels. One module a kind, each with

READS                        which of the fields name, splits and columns of `data` say something about such a source
identity(data) -> str        what the cache is keyed by: changes whenever the images may have changed
read(data) -> Contents       every picture, not decoded yet, and its label. Raises Mistake
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from resnet_cifar.recipe import Data, Mistake

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
class Contents:
    """What a source holds; `remark` is something that a person should know about it."""

    train: Split
    test: Split | None
    classes: tuple[str, ...]
    remark: str = ""


def find(source: str) -> ModuleType:
    """The module that reads `source`: `synthetic`, a file or folder that exists, or a hub id. Raises Mistake.

    A folder of that name wins over a hub id, as it does for `datasets`.
    """
    from resnet_cifar.data.sources import folder, hub, kaggle, npz, pickles, saved, synthetic, tree

    if source == "synthetic":
        return synthetic
    path = Path(source).expanduser()
    if path.is_dir():
        return next((kind for kind in (saved, pickles, kaggle, tree) if kind.holds(path)), folder)
    files = {".npz": npz, ".zip": kaggle, ".7z": kaggle, ".tar.gz": pickles, ".tgz": pickles, ".tar": pickles}
    if ending := next((ending for ending in files if path.name.lower().endswith(ending)), None):
        if path.is_file():
            return files[ending]
        raise Mistake(f"data.source {source!r} is no file here: check its path")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        return hub
    raise Mistake(
        f"data.source {source!r} is no folder, archive or .npz file here, no hub id (OWNER/NAME) and not `synthetic`: "
        "take uoft-cs/cifar10, a folder of class folders, or synthetic"
    )


def check_fields(data: Data, kind: ModuleType) -> None:
    """Raises Mistake where fields describe what this kind of source does not have."""
    given = {"name": data.name, "splits": data.splits.train or data.splits.test}
    given["columns"] = data.columns.image or data.columns.label
    for name, value in given.items():
        if value and name not in kind.READS:
            raise Mistake(f"data.{name} {value!r} says nothing about data.source {data.source!r}: leave it out")


def stamp(root: Path) -> str:
    """The path, size and time of change of a file, or of every file of a folder."""
    root = root.expanduser().resolve()
    # Not rglob, which passes over folders that are links.
    below = (Path(folder, file) for folder, _, files in os.walk(root, followlinks=True) for file in files)
    files = sorted(path for path in below if path.is_file()) if root.is_dir() else [root]
    stamps = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{root} {stamps}"


def choose_splits(names: Iterable[str], data: Data) -> tuple[str, list[str]]:
    """The split to train on, and those that may be the test split, best first. Raises Mistake."""
    names, wanted = list(names), data.splits
    mend = "name them with --data.splits.train and --data.splits.test"
    for role, name in (("train", wanted.train), ("test", wanted.test)):
        if name and name not in names:
            raise Mistake(f"data.splits.{role} {name!r} is none of the splits {names} of data.source {data.source!r}")
    only = names[0] if len(names) == 1 else None
    known = {name.lower(): name for name in names}
    train = wanted.train or next((known[word] for word in TRAIN if word in known), only)
    if train is None:
        raise Mistake(f"data.source {data.source!r} has the splits {names}, none called train: {mend}")
    if wanted.test == train:
        raise Mistake(f"data.splits.test {train!r} is trained on too: name another, or leave it out to cut a part off")
    return train, [wanted.test] if wanted.test else [known[word] for word in _TEST if known.get(word, train) != train]


def number(train: np.ndarray, test: np.ndarray | None) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
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


def cache_root() -> Path:
    """$RESNET_CIFAR_CACHE, or resnet_cifar in the user's cache folder. Raises Mistake where it cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("RESNET_CIFAR_CACHE") or Path(home) / "resnet_cifar")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"the cache folder {root} cannot be made ({error.strerror}): set RESNET_CIFAR_CACHE") from None
    return root


def _present(values: np.ndarray) -> np.ndarray:
    return values != "" if values.dtype.kind == "U" else values >= 0

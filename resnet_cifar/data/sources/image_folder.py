"""A folder of pictures: `CLASS/a.jpg`, or `train/CLASS/a.jpg` and `test/CLASS/b.png`; class order is by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import TRAIN, SourceData, Split, choose_splits, file_stamps

FIELDS = ("splits",)
_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
_TABLES = (".parquet", ".arrow", ".tar")  # a data set in the hub's layout; and so is one with metadata.csv or .jsonl


def recognizes(folder: Path) -> bool:
    """Whether pictures lie somewhere in the folder, and no tables."""
    found = False
    for _, _, files in os.walk(folder, followlinks=True):
        if any(file.endswith(_TABLES) or Path(file).stem == "metadata" for file in files):
            return False
        found = found or any(map(is_image_file, files))
    return found


def identity(data: Data) -> str:
    """Every file's path, size and time of change."""
    return f"tree {file_stamps(Path(data.source))}"


def read(data: Data) -> SourceData:
    """The paths of the pictures in every class folder. Raises UserError."""
    root = Path(data.source).expanduser()
    folders = _subfolders(root)
    is_split = any(name.lower() in TRAIN and _subfolders(folder) for name, folder in folders.items())
    if is_split or data.splits.train:
        train, candidates = choose_splits(folders, data)
    else:
        train, candidates, folders = "train", [], {"train": root}
    classes = list(_subfolders(folders[train]))
    if not classes:
        raise UserError(
            f"data.source {data.source!r} holds pictures that have no class: put those of each class into a folder of "
            "its own, named like it, or name them in a trainLabels.csv as Kaggle does"
        )
    test = next((name for name in candidates if _subfolders(folders[name])), None)  # Kaggle's test/ has no classes
    if data.splits.test and test is None:
        raise UserError(f"data.splits.test {data.splits.test!r} has no class folders: name another, or leave it out")
    return SourceData(
        _split(train, folders[train], classes, data),
        None if test is None else _split(test, folders[test], classes, data),
        tuple(classes),
        _describe_ignored_files(root),
    )


def _split(name: str, folder: Path, classes: list[str], data: Data) -> Split:
    from torchvision.datasets.folder import make_dataset

    if unknown := sorted(_subfolders(folder).keys() - set(classes)):
        raise UserError(f"data.source {data.source!r}: {name} has the classes {unknown}, which are not among {classes}")
    numbers = {word: number for number, word in enumerate(classes) if (folder / word).is_dir()}

    def is_valid(path: str) -> bool:
        inside = Path(path).relative_to(folder)
        return is_image_file(inside.name) and not any(part.startswith((".", "__")) for part in inside.parts)

    rows = make_dataset(folder, numbers, is_valid_file=is_valid, allow_empty=True)
    labels = np.array([label for _, label in rows], dtype=np.int64)
    if empty := [word for word, number in numbers.items() if number not in labels]:
        raise UserError(
            f"data.source {data.source!r}: the class folders {empty} of {name} hold no pictures: remove them"
        )
    return Split(name, [path for path, _ in rows], labels)


def _subfolders(folder: Path) -> dict[str, Path]:
    """Its folders by name, sorted, without those that systems leave, such as .git and __MACOSX."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    return {path.name: path for path in found}


def is_image_file(file: str) -> bool:
    """Whether a file of this name is taken for one."""
    return not file.startswith(".") and file.lower().endswith(_ENDINGS)


def _describe_ignored_files(root: Path) -> str:
    """A sentence on files that are in the tree and not taken for pictures."""
    names = [file for _, _, files in os.walk(root, followlinks=True) for file in files if not is_image_file(file)]
    endings = sorted({Path(name).suffix or name for name in names})
    return (
        f"passed over, as their endings are not those of pictures: {', '.join(endings)} ({len(names)})" if names else ""
    )

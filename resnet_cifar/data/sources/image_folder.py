"""A folder of images: `CLASS/a.jpg`, or `train/CLASS/a.jpg` and `test/CLASS/b.png`; classes are sorted by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import TRAIN, SourceData, Split, choose_splits, file_stamps

FIELDS = ("splits",)
_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
_TABLES = (".parquet", ".arrow", ".tar")  # in the hub's layout, as is a folder with metadata.csv or .jsonl


def recognizes(folder: Path) -> bool:
    """Whether there are images and no tables anywhere in the folder."""
    found = False
    for _, _, files in os.walk(folder, followlinks=True):
        if any(file.endswith(_TABLES) or Path(file).stem == "metadata" for file in files):
            return False
        found = found or any(map(is_image_file, files))
    return found


def identity(data: Data) -> str:
    """Path, size and modification time of every file."""
    return f"tree {file_stamps(Path(data.source))}"


def read(data: Data) -> SourceData:
    """The paths of the images in every class folder. Raises UserError."""
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
            f"data.source {data.source!r} contains images without a class: put those of each class into a folder "
            "named after it, or list them in a trainLabels.csv as Kaggle does"
        )
    test = next((name for name in candidates if _subfolders(folders[name])), None)  # Kaggle's test/ has no classes
    if data.splits.test and test is None:
        raise UserError(f"data.splits.test {data.splits.test!r} has no class folders: name another, or remove it")
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
            f"data.source {data.source!r}: the class folders {empty} of {name} contain no images: remove them"
        )
    return Split(name, [path for path, _ in rows], labels)


def _subfolders(folder: Path) -> dict[str, Path]:
    """Subfolders by name, sorted, without those that tools leave behind, such as .git and __MACOSX."""
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    return {path.name: path for path in found}


def is_image_file(file: str) -> bool:
    """Whether a file name has the extension of an image."""
    return not file.startswith(".") and file.lower().endswith(_ENDINGS)


def _describe_ignored_files(root: Path) -> str:
    """A remark on the files that are not images by their extension."""
    names = [file for _, _, files in os.walk(root, followlinks=True) for file in files if not is_image_file(file)]
    endings = sorted({Path(name).suffix or name for name in names})
    return f"ignored files without an image extension: {', '.join(endings)} ({len(names)})" if names else ""

"""Class folders or a CSV of labels, in a folder or an archive: `CLASS/a.jpg`, or `train/CLASS/a.jpg` and `val/...`."""

from __future__ import annotations

import unicodedata
from collections import Counter
from pathlib import PurePosixPath

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Columns, Data, SplitNames
from resnet_cifar.data.sources import label_csv, label_splits
from resnet_cifar.data.sources.base import (
    TEST,
    TRAIN,
    VALIDATION,
    SourceData,
    Split,
    Tree,
    choose_held_out,
    choose_train,
    shorten,
)
from resnet_cifar.data.sources.image_io import HEIC

ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", *HEIC)
SPLIT_NAMES = (*TRAIN, *VALIDATION, *TEST)


def is_image_file(file: str) -> bool:
    """Whether a file name has the extension of an image."""
    return not file.startswith(".") and file.lower().endswith(ENDINGS)


def read_tree(tree: Tree, data: Data) -> SourceData:
    """The images, labeled by their class folders or by CSV files beside them. Raises UserError."""
    images = [file for file in tree.files if is_image_file(PurePosixPath(file).name)]
    has_folders = data.columns == Columns() and has_class_folders(tree, images)
    tables = label_csv.find(tree, images, data, must_be_read=not has_folders)
    if data.columns != Columns() and not tables:
        given = data.columns.image or data.columns.label
        raise UserError(
            f"data.columns {given!r} does not apply to data.source {data.source!r}, which has no CSV: remove it"
        )
    if tables and not has_folders:
        return label_splits.read(tables, tree, images, data)
    label_csv.check_agreement(tables, images, data)
    return _read_class_folders(tree, images, data)


def has_class_folders(tree: Tree, images: list[str]) -> bool:
    """Whether there are several folders of images that are not splits, or splits with class folders."""
    filled = {image.split("/")[0] for image in images if "/" in image}
    return bool(_train_folders(tree)) or (len(filled) > 1 and not all(name.lower() in SPLIT_NAMES for name in filled))


def _train_folders(tree: Tree) -> list[str]:
    """Folders called train that contain folders."""
    outer = {folder.split("/")[0] for folder in tree.folders if "/" in folder}
    return [name for name in outer if name.lower() in TRAIN]


def _read_class_folders(tree: Tree, images: list[str], data: Data) -> SourceData:
    tops = [folder for folder in tree.folders if "/" not in folder]
    names, unused = {"train": ""}, []
    if _train_folders(tree) or data.splits != SplitNames():
        names, unused = choose_held_out(
            tops, choose_train(tops, data), data, lambda name: "" if _subfolders(tree, name) else "has no class folders"
        )
    if not images:
        raise UserError(
            f"data.source {data.source!r} contains no images, {_kinds(tree.files) if tree.files else 'it is empty'}: "
            "name one with class folders, or a CSV of file names and labels beside images"
        )
    classes = _subfolders(tree, names["train"])
    flat = {image.split("/")[0] for image in images}
    if not classes or (names["train"] == "" and len(flat) > 1 and all(name.lower() in SPLIT_NAMES for name in flat)):
        raise UserError(
            f"data.source {data.source!r} contains images without a class ({shorten(map(repr, images), 3)}): put those "
            "of each class into a folder named after it, or list them in a labels.csv beside them, with the columns "
            "file and label"
        )
    parts = {role: _split(name, classes, tree, images, data) for role, name in names.items()}
    used = {image for split, _ in parts.values() for image in split.images}
    unread_folders = set(tops) - {*names.values()}
    loose = [image for image in images if image not in used and image.split("/")[0] not in unread_folders]
    unread = [file for file in tree.files if not is_image_file(PurePosixPath(file).name)]
    remarks = (
        f"not used: the folders {shorten(unused)}" if unused else "",
        f"not used: images outside the class folders: {shorten(map(repr, loose))}" if loose else "",
        _merged_folders([folder for _, folders in parts.values() for folder in folders]),
        f"not used: files that are not images by their names: {_kinds(unread)}" if unread else "",
        *tree.remarks,
    )
    splits = {role: Split(split.name, tree.images(split.images), split.labels) for role, (split, _) in parts.items()}
    remarks = tuple(filter(None, remarks))
    return SourceData(splits["train"], splits.get("test"), tuple(classes), remarks, splits.get("validation"))


def _split(name: str, classes: list[str], tree: Tree, images: list[str], data: Data) -> tuple[Split, list[str]]:
    """The paths and labels of a split's images, by class, and the folders inside its class folders."""
    own, alike = _subfolders(tree, name), {*map(_normal, classes)}
    if unknown := [each for each in own if each not in classes]:
        raise UserError(
            f"data.source {data.source!r}: {name} has the classes {shorten(map(repr, unknown))}, which are not among "
            f"{shorten(map(repr, classes))}: add them to the training images, or remove them"
            + f"; {unknown[0]!a} is another Unicode form of a class: rename it"
            * (_normal(unknown[0]) in alike)
        )
    prefix = f"{name}/" if name else ""
    by_class: dict[str, list[str]] = {each: [] for each in own}
    for image in images:
        folder, slash, _ = image.removeprefix(prefix).partition("/")
        if image.startswith(prefix) and slash and folder in by_class:
            by_class[folder].append(image)
    if empty := [each for each, found in by_class.items() if not found]:
        seen = [file for file in tree.files for each in empty if file.startswith(f"{prefix}{each}/")]
        held = f", only {_kinds(seen)}" if seen else ""
        raise UserError(
            f"data.source {data.source!r}: the class folders {shorten(map(repr, empty))} of {name or 'train'} contain "
            f"no images{held}: add images to them, or remove them"
        )
    rows = [(image, label) for label, each in enumerate(classes) for image in by_class.get(each, ())]
    labels = np.array([label for _, label in rows], dtype=np.int64)
    nested = sorted({image.rpartition("/")[0] for image, _ in rows} - {prefix + each for each in own})
    return Split(name or "train", [image for image, _ in rows], labels), nested


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _subfolders(tree: Tree, folder: str) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    below = (each.removeprefix(prefix) for each in tree.folders if each.startswith(prefix))
    return sorted(each for each in below if "/" not in each)


def _merged_folders(folders: list[str]) -> str:
    return (
        f"images of folders inside a class folder belong to the class: {shorten(map(repr, folders))}" if folders else ""
    )


def _kinds(files: list[str]) -> str:
    """`5 .CR2, 1 .txt ('c/0.CR2', ...)`."""
    counts = Counter(PurePosixPath(file).suffix or PurePosixPath(file).name for file in files)
    kinds = shorten(f"{count:,} {kind}" for kind, count in counts.most_common())
    return f"{kinds} ({shorten(map(repr, sorted(files)), 3)})"

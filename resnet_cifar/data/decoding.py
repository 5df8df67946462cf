"""Decodes the images of a source into .npy files, a chunk at a time, so that data sets may exceed the memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from resnet_cifar.config.errors import UserError, check_name, printable
from resnet_cifar.config.schema import Data
from resnet_cifar.data import value_range
from resnet_cifar.data.cache import FILE_NAMES, check_space, in_bytes, write_errors
from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.base import SourceData, Split, shorten
from resnet_cifar.data.sources.image_io import Decoding

_CHUNK = 128  # images decoded at a time
_LARGE = 4  # times the pixels that the network sees

Files = dict[int, str]  # index of an image -> its file, or "" if unknown


@dataclass(frozen=True)
class Decoded:
    """`images`: number of images in each file, all of `size` (height, width); `names`: of the splits in the source;
    `side`: what large images or images of several sizes were resized to, or 0; `value_range`, `mode`: see `Decoding`;
    `left_out`: indices of each split's images that were skipped; `remarks`: shown to the user.
    """

    images: dict[str, int]
    names: dict[str, str]
    size: tuple[int, int]
    side: int
    value_range: tuple[float, float] | None
    mode: str
    left_out: dict[str, list[int]]
    remarks: tuple[str, ...]


class _MustResize(Exception):
    """The images do not all have the same size, or are large; the text describes them."""


def is_large(height: int, width: int, data: Data) -> bool:
    """Whether images have more than four times the pixels that the network sees: they are not stored at their size."""
    return height * width > _LARGE * data.image_size**2


def decode(contents: SourceData, data: Data, folder: Path, how: Decoding | None = None) -> Decoded:
    """Writes ROLE-images.npy, uint8 [n, height, width, 3], and ROLE-labels.npy, int64 [n], for every split, and
    file_names.json, {ROLE: [n file names]}, unless the images have none.

    `how`: that of a model's training images; otherwise the images' own size, if they all have one, and own range.
    Raises UserError if a split is empty or has no labels; if images do not decode or labels are out of range, naming
    every one of them.
    """
    splits, classes, twins = contents.splits, len(contents.classes), _check_names(contents.classes, data)
    named = contents.has_columns
    unlabeled = {role: dict.fromkeys(_unlabeled(split, classes, data, named), "") for role, split in splits.items()}
    side, sizes, scaled, allow_deep = 0, "", "", how is not None or bool(data.value_range)
    how = how or Decoding(
        (data.decode_size,) * 2 if data.decode_size else None, data.value_range or None, data.decode_mode
    )
    while True:
        try:
            broken, size, files = _write_images(splits, unlabeled, how, allow_deep, folder, data)
            break
        except _MustResize as reason:
            side = data.image_size
            sizes = f"{reason}: the shortest side is resized to {side} and the center cropped (data.decode_size)"
            if how.mode == "pad":
                sizes = f"{reason}: the longest side is resized to {side} and the rest padded (data.decode_mode)"
            how = replace(how, size=(side, side))
        except image_io.DeepImage:
            found, scaled = value_range.measure(contents.train.images, data)
            how, allow_deep = replace(how, value_range=found), True
    for role, split in splits.items():
        if len(broken[role]) == len(split.images):
            raise UserError(
                f"data.source {data.source!r}: no image of {split.name} decodes: "
                + ("name the column of images with --data.columns.image, or " if named else "")
                + "write the images again"
            )
    problems = _problems(splits, broken, unlabeled, classes)
    if problems and not data.skip_broken:
        raise UserError(
            f"data.source {data.source!r}: {problems}; fix or remove them, or skip them with --data.skip_broken True"
        )
    left_out = {role: sorted({*broken[role], *unlabeled[role]}) for role in splits}
    images = {}
    for role, split in splits.items():
        labels = np.delete(split.labels, left_out[role])
        if not len(labels):
            raise UserError(f"data.source {data.source!r}: no usable image in {split.name}, {problems}: fix them")
        lost = sorted({*split.labels.tolist()} & {*range(classes)} - {*labels.tolist()})
        if role == "train" and lost:
            raise UserError(
                f"data.source {data.source!r}: no usable image of {[contents.classes[label] for label in lost]} in "
                f"{split.name}, {problems}: fix them, or remove these classes"
            )
        images[role] = len(labels)
        with write_errors():
            np.save(folder / f"{role}-labels.npy", labels)
    if any(map(any, files.values())):
        with write_errors():
            (folder / FILE_NAMES).write_text(json.dumps(files))
    skipped = f"skipped (data.skip_broken): {problems}"
    remarks = (*contents.remarks, twins, sizes, scaled, skipped if problems else "")
    left_out = {role: rows for role, rows in left_out.items() if rows}
    names = {role: split.name for role, split in splits.items()}
    return Decoded(images, names, size, side, how.value_range, how.mode, left_out, tuple(filter(None, remarks)))


class ArrayFile:
    """An .npy file written in parts, byte for byte as numpy.save writes the whole array. Raises UserError."""

    def __init__(self, path: Path) -> None:
        self._rows, self._layout = 0, None
        with write_errors():
            self._file = path.open("wb")

    def append(self, rows: np.ndarray) -> None:
        """Appends rows [n, ...], always of the same shape and dtype."""
        with write_errors():
            if self._layout is None:
                self._layout = np.lib.format.dtype_to_descr(rows.dtype), rows.shape[1:]
                self._write_header()
            self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def close(self) -> None:
        """Writes the number of rows into the header, where NumPy leaves room for it."""
        with write_errors():
            if self._layout is not None:
                self._file.seek(0)
                self._write_header()
            self._file.close()

    def _write_header(self) -> None:
        dtype, shape = self._layout
        header = {"descr": dtype, "fortran_order": False, "shape": (self._rows, *shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _check_names(classes: Sequence[str], data: Data) -> str:
    """A remark on class names that look alike. Raises UserError for names that cannot be shown."""
    for name in classes:
        check_name(f"data.source {data.source!r}: the name of class", name)
    by_looks: dict[str, list[str]] = {}
    for name in classes:
        visible = "".join(char for char in name if unicodedata.category(char) != "Cf").strip()
        by_looks.setdefault(unicodedata.normalize("NFKC", visible).casefold(), []).append(ascii(name))
    twins = [" and ".join(names) for names in by_looks.values() if len(names) > 1]
    return f"classes whose names look alike: {shorten(twins)}" if twins else ""


def _unlabeled(split: Split, classes: int, data: Data, has_columns: bool) -> list[int]:
    """The images whose label is not one of the classes."""
    if not len(split.labels):
        raise UserError(
            f"data.source {data.source!r}: the split {split.name} is empty: add images to it, or use another source"
        )
    rows = np.flatnonzero((split.labels < 0) | (split.labels >= classes)).tolist()
    if len(rows) == len(split.labels):
        raise UserError(
            f"data.source {data.source!r}: no label of {split.name} is one of the {classes} classes: "
            + ("name the column of labels with --data.columns.label, or " if has_columns else "")
            + "correct them"
        )
    return rows


def _write_images(
    splits: dict[str, Split], unlabeled: dict[str, Files], how: Decoding, allow_deep: bool, folder: Path, data: Data
) -> tuple[dict[str, Files], tuple[int, int], dict[str, list[str]]]:
    """Decodes every image and writes the usable ones; returns those that do not decode, the size of the images, and the
    file names of the usable ones.

    Fills in the files of those that are `unlabeled`. Raises _MustResize; DeepImage unless `allow_deep`.
    """
    broken: dict[str, Files] = {role: {} for role in splits}
    files: dict[str, list[str]] = {role: [] for role in splits}
    shapes: set[tuple[int, ...]] = set()
    with ThreadPoolExecutor() as threads:  # Pillow releases the GIL
        for role, split in splits.items():
            with contextlib.closing(ArrayFile(folder / f"{role}-images.npy")) as file:
                starts = [0, *range(1, len(split.images), _CHUNK)]  # the first image alone tells whether they are large
                for start, end in itertools.pairwise([*starts, len(split.images)]):
                    encoded = split.images[start:end]
                    decoded = threads.map(partial(_decode_image, how=how, allow_deep=allow_deep), encoded)
                    usable = []
                    for row, (source, image) in enumerate(zip(encoded, decoded, strict=True), start=start):
                        if row in unlabeled[role]:
                            unlabeled[role][row] = _file(source, data)
                        if image is None:
                            broken[role][row] = _file(source, data)
                        elif row not in unlabeled[role]:
                            usable.append(image)
                            files[role].append(_file(source, data))
                    is_first = not shapes and usable
                    shapes |= {image.shape for image in usable}
                    _check_shapes(shapes, how, data)
                    if is_first:
                        _announce(sum(len(each.images) for each in splits.values()), usable[0])
                    if usable:
                        file.append(np.stack(usable))
    return broken, min(shapes, default=(0, 0, 3))[:2], files


def _check_shapes(shapes: set[tuple[int, ...]], how: Decoding, data: Data) -> None:
    """Raises _MustResize if images are stored at their own size and are large, of several sizes, or to be padded."""
    if len(shapes) > 1:
        raise _MustResize("images of several sizes")
    for height, width, _ in shapes:
        if how.size is None and how.mode == "pad" and height != width:
            raise _MustResize(f"images of {width}x{height} pixels")
        if how.size is None and is_large(height, width, data):
            raise _MustResize(
                f"images of {width}x{height} pixels, more than {_LARGE} times those of data.image_size "
                f"{data.image_size}"
            )


def _announce(count: int, image: np.ndarray) -> None:
    """Prints how much room the decoded images take. Raises UserError if there is less."""
    nbytes, (height, width) = count * image.nbytes, image.shape[:2]
    print(f"decoding {count:,} images to {width}x{height} pixels, {in_bytes(nbytes)}", flush=True)
    check_space(nbytes)


def _decode_image(image: Any, how: Decoding, allow_deep: bool) -> np.ndarray | None:
    try:
        return image_io.to_rgb(image, how, allow_deep)
    except image_io.UndecodableImage:
        return None


def _file(image: Any, data: Data) -> str:
    """The printable name of the image's file, relative to the source if it lies there."""
    file, root = image_io.source_file(image), Path(data.source).expanduser()
    for folder in (root, root.absolute()):
        file = file.removeprefix(f"{folder}{os.sep}")
    return printable(file)


def _problems(splits: dict[str, Split], broken: dict[str, Files], unlabeled: dict[str, Files], classes: int) -> str:
    """All problems of the images of a source, as part of a sentence, or ""."""

    def describe(found: dict[str, Files], one: str, many: str) -> str:
        count = sum(map(len, found.values()))
        where = "; ".join(f"{splits[role].name} {format_indices(rows)}" for role, rows in found.items() if rows)
        return f"{count} {one if count == 1 else many} ({where})" if count else ""

    undecoded = describe(broken, "image does not decode", "images do not decode")
    if not image_io.READS_HEIC:
        heic = sum(image_io.is_heic(splits[role].images[row]) for role, rows in broken.items() for row in rows)
        undecoded += f", {heic} of them HEIC ({image_io.HEIC_FIX})" if heic else ""
    invalid = describe(
        unlabeled, f"label is not one of the {classes} classes", f"labels are not among the {classes} classes"
    )
    return " and ".join(filter(None, (undecoded, invalid)))


def format_indices(found: Files) -> str:
    """`5-7, 19 (cats/a.jpg)`: every index; consecutive ones without a file as a range."""
    parts = []
    for (_, file), run in itertools.groupby(enumerate(sorted(found)), lambda pair: (pair[1] - pair[0], found[pair[1]])):
        rows = [row for _, row in run]
        span = str(rows[0]) if len(rows) == 1 else f"{rows[0]}-{rows[-1]}"
        parts.append(f"{span} ({file})" if file else span)
    return ", ".join(parts)

"""The pictures of a source become arrays in files, a chunk at a time, so that memory bounds no data set."""

from __future__ import annotations

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.cache import write_errors
from resnet_cifar.data.sources import image_io
from resnet_cifar.data.sources.base import SourceData, Split

_CHUNK = 128  # pictures decoded at a time

Named = dict[int, str]  # index of a picture -> its file, where that is known


@dataclass(frozen=True)
class Decoded:
    """`images`: how many each file holds, all of `size` (height, width); `side`: what pictures of several sizes were
    brought to, or 0; `left_out`: indices of each split's pictures that are not in its file; `remarks`: for a person.
    """

    images: dict[str, int]
    size: tuple[int, int]
    side: int
    left_out: dict[str, list[int]]
    remarks: tuple[str, ...]


class _SeveralSizes(Exception):
    """Not all pictures have the same size."""


def decode(contents: SourceData, data: Data, folder: Path) -> Decoded:
    """Writes ROLE-images.npy, uint8 [n, height, width, 3], and ROLE-labels.npy, int64 [n], for `train` and `test`.

    Raises UserError where a split is empty or has no labels; where pictures do not decode or labels are none of the
    classes, naming every one of them; and where a single class is left.
    """
    splits = {"train": contents.train, **({"test": contents.test} if contents.test else {})}
    classes = len(contents.classes)
    unlabelled = {role: dict.fromkeys(_unlabelled(split, classes, data), "") for role, split in splits.items()}
    try:
        side, (broken, size) = 0, _write_images(splits, unlabelled, data.decode_size, folder, data)
    except _SeveralSizes:
        side, (broken, size) = data.image_size, _write_images(splits, unlabelled, data.image_size, folder, data)
    for role, split in splits.items():
        if len(broken[role]) == len(split.images):
            raise UserError(
                f"data.source {data.source!r}: no image of {split.name} decodes: an image column can be named with "
                "--data.columns.image"
            )
    problems = _problems(splits, broken, unlabelled, classes)
    if problems and not data.skip_broken:
        raise UserError(
            f"data.source {data.source!r}: {problems}; mend or remove them, or leave them out with "
            "--data.skip_broken True"
        )
    left_out = {role: sorted({*broken[role], *unlabelled[role]}) for role in splits}
    images = {}
    for role, split in splits.items():
        labels = np.delete(split.labels, left_out[role])
        if not len(labels):
            raise UserError(f"data.source {data.source!r}: nothing is left of {split.name}, {problems}: mend them")
        if role == "train" and len(np.unique(labels)) == 1:
            raise UserError(
                f"data.source {data.source!r} has images of one class only, {contents.classes[labels[0]]!r}: take one "
                "of two classes or more; a label column can be named with --data.columns.label"
            )
        images[role] = len(labels)
        with write_errors():
            np.save(folder / f"{role}-labels.npy", labels)
    sizes = f"images of several sizes: the shortest side is resized to {side} and the centre kept (data.decode_size)"
    left = f"left out (data.skip_broken): {problems}"
    remarks = (contents.remark, sizes if side else "", left if problems else "")
    left_out = {role: rows for role, rows in left_out.items() if rows}
    return Decoded(images, size, side, left_out, tuple(filter(None, remarks)))


class ArrayFile:
    """An .npy file that grows by rows: byte for byte what numpy.save writes of all of them. Raises UserError."""

    def __init__(self, path: Path) -> None:
        self._rows, self._layout = 0, None
        with write_errors():
            self._file = path.open("wb")

    def append(self, rows: np.ndarray) -> None:
        """Rows of one shape and type, [n, ...]."""
        with write_errors():
            if self._layout is None:
                self._layout = np.lib.format.dtype_to_descr(rows.dtype), rows.shape[1:]
                self._write_header()
            self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def close(self) -> None:
        """Writes into the header how many rows there are; numpy leaves room for that number."""
        with write_errors():
            if self._layout is not None:
                self._file.seek(0)
                self._write_header()
            self._file.close()

    def _write_header(self) -> None:
        dtype, shape = self._layout
        header = {"descr": dtype, "fortran_order": False, "shape": (self._rows, *shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _unlabelled(split: Split, classes: int, data: Data) -> list[int]:
    """The pictures whose label is none of the classes."""
    if not len(split.labels):
        raise UserError(f"data.source {data.source!r}: the split {split.name} is empty: name another in data.splits")
    rows = np.flatnonzero((split.labels < 0) | (split.labels >= classes)).tolist()
    if len(rows) == len(split.labels):
        raise UserError(
            f"data.source {data.source!r}: no label of {split.name} is one of the {classes} classes: the label "
            "column can be named with --data.columns.label"
        )
    return rows


def _write_images(
    splits: dict[str, Split], unlabelled: dict[str, Named], side: int, folder: Path, data: Data
) -> tuple[dict[str, Named], tuple[int, int]]:
    """Decodes every picture and writes those that can be used; returns the ones that do not decode, and the size.

    Fills in the files of those that are `unlabelled`.
    """
    broken: dict[str, Named] = {role: {} for role in splits}
    shapes: set[tuple[int, ...]] = set()
    with ThreadPoolExecutor() as threads:  # Pillow decodes outside the interpreter's lock
        for role, split in splits.items():
            with contextlib.closing(ArrayFile(folder / f"{role}-images.npy")) as file:
                for start in range(0, len(split.images), _CHUNK):
                    encoded = split.images[start : start + _CHUNK]
                    decoded = threads.map(_rgb, encoded, itertools.repeat(side))
                    kept = []
                    for row, (picture, image) in enumerate(zip(encoded, decoded, strict=True), start=start):
                        if row in unlabelled[role]:
                            unlabelled[role][row] = _file(picture, data)
                        if image is None:
                            broken[role][row] = _file(picture, data)
                        elif row not in unlabelled[role]:
                            kept.append(image)
                    shapes |= {image.shape for image in kept}
                    if len(shapes) > 1:
                        raise _SeveralSizes
                    if kept:
                        file.append(np.stack(kept))
    return broken, min(shapes, default=(0, 0, 3))[:2]


def _rgb(picture: Any, side: int) -> np.ndarray | None:
    try:
        return image_io.to_rgb(picture, side)
    except image_io.UndecodableImage:
        return None


def _file(picture: Any, data: Data) -> str:
    """The picture's file, as seen from the source's folder."""
    file = Path(image_io.source_file(picture))
    root = Path(data.source).expanduser()
    return "" if file == Path() else str(file.relative_to(root) if file.is_relative_to(root) else file)


def _problems(splits: dict[str, Split], broken: dict[str, Named], unlabelled: dict[str, Named], classes: int) -> str:
    """All that is wrong with a source's pictures, as half a sentence, or nothing."""

    def listed(found: dict[str, Named], one: str, many: str) -> str:
        count = sum(map(len, found.values()))
        where = "; ".join(f"{splits[role].name} {listing(rows)}" for role, rows in found.items() if rows)
        return f"{count} {one if count == 1 else many} ({where})" if count else ""

    undecoded = listed(broken, "image does not decode", "images do not decode")
    lost = listed(unlabelled, f"label is none of the {classes} classes", f"labels are none of the {classes} classes")
    return " and ".join(filter(None, (undecoded, lost)))


def listing(found: Named) -> str:
    """`5-7, 19 (cats/a.jpg)`: every index, neighbours without a file of their own as a range."""
    words = []
    for (_, file), run in itertools.groupby(enumerate(sorted(found)), lambda pair: (pair[1] - pair[0], found[pair[1]])):
        rows = [row for _, row in run]
        span = str(rows[0]) if len(rows) == 1 else f"{rows[0]}-{rows[-1]}"
        words.append(f"{span} ({file})" if file else span)
    return ", ".join(words)

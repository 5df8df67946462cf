"""A Kaggle competition's layout, as CIFAR-10's: `train/1.png`, ..., and trainLabels.csv with the columns id and label.

A folder of these, where train.7z or train.zip may stand for train/; an archive of these, which may hold such an archive
itself; or train.7z with trainLabels.csv beside it. What lies in test/ has no labels and is not read.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources import archives, image_io
from resnet_cifar.data.sources.archives.spool import MemberSpool, SpooledImages
from resnet_cifar.data.sources.base import SourceData, Split, encode_labels, file_stamps
from resnet_cifar.data.sources.image_folder import is_image_file

FIELDS = ("columns",)
_TABLE = "trainLabels.csv"
_PLACES = ("train", "train.7z", "train.zip")
# What CIFAR-10's numbers mean, wherever it is published.
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def recognizes(folder: Path) -> bool:
    """Whether labels lie in the folder beside train/, or beside an archive of it; a train/ of class folders is none."""
    if not (folder / _TABLE).is_file():  # which is missed when train.7z is read: nothing else is a data set with one
        return (folder / "train.7z").is_file() and not (folder / "train").is_dir()
    inside = list((folder / "train").iterdir()) if (folder / "train").is_dir() else []
    return _image_location(folder) is not None and (not inside or any(is_image_file(path.name) for path in inside))


def identity(data: Data) -> str:
    """Path, size and time of change of every file that is read."""
    source = Path(data.source).expanduser()
    pictures = source if source.is_file() else _image_location(source)
    table = pictures.parent / _TABLE
    return f"kaggle {file_stamps(pictures)} {file_stamps(table) if table.is_file() else ''}"


def read(data: Data) -> SourceData:
    """All labelled pictures, in the order of their numbers; there is no test split. Raises UserError."""
    source = Path(data.source).expanduser()
    place = source if source.is_file() else _image_location(source)
    beside = place.parent / _TABLE
    if place.is_dir():
        with archives.user_errors(f"data.source {data.source!r}"):
            files, table = [path for path in place.iterdir() if is_image_file(path.name)], beside.read_bytes()
        return _source_data(table, _sort_by_id(files, data), data)
    with archives.open_archive(place, data) as archive:
        tables = [name for name in archive.sizes if PurePosixPath(name).name == _TABLE]
        if len(tables) > 1:
            raise UserError(f"{archive.where} holds {' and '.join(tables)}: pack one")
        if not tables and not beside.is_file():
            raise UserError(
                f"{archive.where} holds no {_TABLE}, and none lies beside it: fetch it from the competition"
            )
        pictures, loose = _pictures(archive)
        inner = [name for name in archive.sizes if PurePosixPath(name).name in _PLACES[1:]]
        pictures = pictures or ([] if inner else loose)
        spool = archive.extract([*tables, *pictures])  # at once: what is solid is read from its start each time
        table = spool.read(tables[0]) if tables else beside.read_bytes()
        if pictures or not inner:
            return _source_data(table, _spooled(spool, pictures, place, data), data)
        with archive.nested(inner[0]) as nested:
            pictures = next(filter(None, _pictures(nested)), [])
            return _source_data(table, _spooled(nested.extract(pictures), pictures, place / inner[0], data), data)


def _image_location(folder: Path) -> Path | None:
    """Where a folder has its pictures: unpacked ones first."""
    return next((folder / name for name in _PLACES if (folder / name).exists()), None)


def _pictures(archive: archives.Archive) -> tuple[list[str], list[str]]:
    """The pictures in a folder train, and those in no folder."""
    ours = [path for path in map(PurePosixPath, archive.sizes) if is_image_file(path.name)]
    ours = [path for path in ours if not any(part.startswith((".", "__")) for part in path.parts)]
    return [str(path) for path in ours if path.parent.name == "train"], [str(p) for p in ours if len(p.parts) == 1]


def _spooled(spool: MemberSpool, pictures: list[str], root: Path, data: Data) -> tuple[list[str], SpooledImages]:
    ids, names = _sort_by_id(pictures, data)
    return ids, SpooledImages(spool, names, root)


def _sort_by_id(files: Iterable[Any], data: Data) -> tuple[list[str], list[Any]]:
    """Ids and files, in the order of the ids: 1, 2, 10."""
    found = sorted(((PurePosixPath(file).stem, file) for file in files), key=lambda pair: _numeric_order(pair[0]))
    ids = [name for name, _ in found]
    if twice := _format_ids(name for name, count in Counter(ids).items() if count > 1):
        raise UserError(f"data.source {data.source!r} holds two pictures of the ids {twice}: keep one of each")
    return ids, [file for _, file in found]


def _source_data(table: bytes, found: tuple[list[str], Any], data: Data) -> SourceData:
    (ids, pictures), named = found, _labels(table, data)
    if not ids:
        raise UserError(
            f"data.source {data.source!r} holds no pictures in train/: they should be there as 1.png, 2.png"
        )
    remarks = []
    if lost := sorted(named.keys() - set(ids), key=_numeric_order):
        problem = f"{len(lost)} of the ids in {_TABLE} have no picture in train/ ({_format_ids(lost)})"
        if not data.skip_broken:
            raise UserError(
                f"data.source {data.source!r}: {problem}; bring them back or remove their rows, or leave them out with "
                "--data.skip_broken True"
            )
        remarks.append(f"left out (data.skip_broken): {problem}")
    words = [named.get(name, "") for name in ids]
    is_numbers = all(re.fullmatch(r"-?\d{1,18}|", word) for word in words)
    values = np.array([int(word or -1) for word in words] if is_numbers else words)
    classes, labels, _ = encode_labels(values, None)
    if classes == tuple("0123456789") and is_numbers and _have_cifar10_size(pictures):
        classes = _CIFAR10
        remarks.append(f"labels 0 to 9 are taken for CIFAR-10's, {classes[0]} to {classes[-1]}: others, write as names")
    return SourceData(Split("train", pictures, labels), None, classes, "; ".join(remarks))


def _labels(content: bytes, data: Data) -> dict[str, str]:
    """Labels by id, as they are written; "" where there is none. Raises UserError."""
    where, columns = f"data.source {data.source!r}: {_TABLE}", data.columns
    try:
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        names = {name.strip().lower(): name for name in rows.fieldnames or ()}
        table = [(rows.line_num, row) for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read ({error}): save it as CSV in UTF-8") from None
    given = {"id": columns.image or names.get("id"), "label": columns.label or names.get("label")}
    for role, name in given.items():
        if name not in names.values():
            raise UserError(
                f"{where} has the columns {list(names.values())}, none of them {name or role!r}: it should have id and "
                "label, or name its columns with --data.columns.image and --data.columns.label"
            )
    found: dict[str, str] = {}
    twice = []
    for line, row in table:
        name, label = ((row[given[role]] or "").strip() for role in ("id", "label"))
        if not name or None in row:
            raise UserError(f"{where}, line {line}: {'too many columns' if name else 'no id'}: mend the row")
        name = PurePosixPath(name).stem if is_image_file(name) else name
        twice += [name] if name in found else []
        found[name] = label
    if twice:
        raise UserError(
            f"{where} has two rows or more of the ids {_format_ids(dict.fromkeys(twice))}: keep one of each"
        )
    return found


def _have_cifar10_size(pictures: Any) -> bool:
    try:
        return image_io.to_rgb(pictures[0]).shape == (32, 32, 3)
    except image_io.UndecodableImage:
        return False


def _numeric_order(name: str) -> tuple[int, int, str]:
    """Numbers by their value, before words."""
    return (0, int(name), name) if re.fullmatch(r"[0-9]{1,18}", name) else (1, 0, name)


def _format_ids(ids: Iterable[str]) -> str:
    """All of them; neighbours as a range: `3, 5-7, x`."""
    spans: list[list[str]] = []
    for name in sorted(ids, key=_numeric_order):
        if spans and all(map(str.isdecimal, (name, spans[-1][-1]))) and int(name) == int(spans[-1][-1]) + 1:
            spans[-1] = [spans[-1][0], name]
        else:
            spans.append([name])
    return ", ".join("-".join(span) for span in spans)

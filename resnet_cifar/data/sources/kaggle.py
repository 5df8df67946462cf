"""The layout of Kaggle's CIFAR-10 competition: `train/1.png`, ..., and trainLabels.csv with the columns id and label.

Either a folder of these, where train.7z or train.zip may replace train/; or an archive of these, which may contain such
an archive itself; or train.7z with trainLabels.csv next to it. Images in test/ have no labels and are not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources import archives, csv_table, image_io
from resnet_cifar.data.sources.archives.spool import MemberSpool, SpooledImages
from resnet_cifar.data.sources.base import SourceData, Split, encode_labels
from resnet_cifar.data.sources.image_tree import is_image_file
from resnet_cifar.data.sources.walk import file_stamps, is_hidden

FIELDS = ("columns",)
_TABLE = "trainLabels.csv"
_PLACES = ("train", "train.7z", "train.zip")
# The names of CIFAR-10's labels 0 to 9.
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def recognizes(folder: Path) -> bool:
    """Whether the folder has labels next to train/ or an archive of it; a train/ of class folders does not count."""
    if not (folder / _TABLE).is_file():  # reading train.7z then reports the missing table
        return (folder / "train.7z").is_file() and not (folder / "train").is_dir()
    inside = list((folder / "train").iterdir()) if (folder / "train").is_dir() else []
    return _image_location(folder) is not None and (not inside or any(is_image_file(path.name) for path in inside))


def recognizes_archive(archive: archives.Archive, place: Path) -> bool:
    """Whether an archive has a table of labels or the archive of images in it, or images for a table beside it."""
    if any(PurePosixPath(name).name in (_TABLE, *_PLACES[1:]) for name in archive.sizes):
        return True
    images = _images(archive)
    every = sum(is_image_file(PurePosixPath(name).name) for name in archive.sizes)
    return any(images) and every == sum(map(len, images)) and (table_beside(place).is_file() or place.stem == "train")


def table_beside(place: Path) -> Path:
    """The table of labels beside train/ or an archive."""
    return place.parent / _TABLE


def identity(data: Data) -> str:
    """Path, size and time of change of every file that is read."""
    images = _image_location(Path(data.source).expanduser())
    table = table_beside(images)
    return f"kaggle 2 {file_stamps(images)} {file_stamps(table) if table.is_file() else ''}"


def read(data: Data) -> SourceData:
    """All labeled images, in the order of their ids; there is no test split. Raises UserError."""
    place = _image_location(Path(data.source).expanduser())
    if place.is_dir():
        with archives.user_errors(f"data.source {data.source!r}"):
            files = [path for path in place.iterdir() if is_image_file(path.name)]
            table = table_beside(place).read_bytes()
        return _source_data(
            table, _sort_by_id(files, data), data, _has_test(path.name for path in place.parent.iterdir())
        )
    with archives.open_archive(place, data) as archive:
        return read_archive(archive, place, data)


def read_archive(archive: archives.Archive, place: Path, data: Data) -> SourceData:
    """As `read`, from the archive at `place`. Raises UserError."""
    beside = table_beside(place)
    tables = [name for name in archive.sizes if PurePosixPath(name).name == _TABLE]
    if len(tables) > 1:
        raise UserError(f"{archive.where} contains {' and '.join(tables)}: pack one")
    if not tables and not beside.is_file():
        raise UserError(
            f"{archive.where} contains no {_TABLE}, and there is none next to it: download it from the competition, or "
            "pack class folders"
        )
    images, loose = _images(archive)
    inner = [name for name in archive.sizes if PurePosixPath(name).name in _PLACES[1:]]
    images = images or ([] if inner else loose)
    has_test = _has_test(archive.sizes if tables else (path.name for path in beside.parent.iterdir()))
    spool = archive.extract([*tables, *images])  # in one call: a solid archive is read from its start each time
    table = spool.read(tables[0]) if tables else beside.read_bytes()
    if images or not inner:
        return _source_data(table, _spooled(spool, images, place, data), data, has_test)
    with archive.nested(inner[0]) as nested:
        images = next(filter(None, _images(nested)), [])
        return _source_data(table, _spooled(nested.extract(images), images, place / inner[0], data), data, has_test)


def _image_location(folder: Path) -> Path | None:
    """Where the images of a folder are: unpacked ones take precedence."""
    return next((folder / name for name in _PLACES if (folder / name).exists()), None)


def _has_test(paths: Iterable[str]) -> bool:
    """Whether images without labels are among the files and folders."""
    return any({"test", "test.7z", "test.zip"} & {*PurePosixPath(path).parts} for path in paths)


def _images(archive: archives.Archive) -> tuple[list[str], list[str]]:
    """The images in folders called train, and those in no folder."""
    ours = [path for path in map(PurePosixPath, archive.sizes) if is_image_file(path.name)]
    ours = [path for path in ours if not any(map(is_hidden, path.parts[:-1]))]
    return [str(path) for path in ours if path.parent.name == "train"], [str(p) for p in ours if len(p.parts) == 1]


def _spooled(spool: MemberSpool, images: list[str], root: Path, data: Data) -> tuple[list[str], SpooledImages]:
    ids, names = _sort_by_id(images, data)
    return ids, SpooledImages(spool, names, root)


def _sort_by_id(files: Iterable[Any], data: Data) -> tuple[list[str], list[Any]]:
    """Ids and files, in the order of the ids: 1, 2, 10."""
    found = sorted(((PurePosixPath(file).stem, file) for file in files), key=lambda pair: _numeric_order(pair[0]))
    ids = [name for name, _ in found]
    if twice := _format_ids(name for name, count in Counter(ids).items() if count > 1):
        raise UserError(f"data.source {data.source!r} contains two images each for the ids {twice}: keep one of each")
    return ids, [file for _, file in found]


def _source_data(table: bytes, found: tuple[list[str], Any], data: Data, has_test: bool) -> SourceData:
    """`has_test`: whether there are the competition's test images."""
    (ids, images), named = found, _labels(table, data)
    if not ids:
        raise UserError(f"data.source {data.source!r} contains no images in train/: put them there as 1.png, 2.png")
    remarks = ["not used: the images in test, which have no labels"] * has_test
    if lost := sorted(named.keys() - set(ids), key=_numeric_order):
        problem = f"{len(lost)} of the ids in {_TABLE} have no image in train/ ({_format_ids(lost)})"
        if not data.skip_broken:
            raise UserError(
                f"data.source {data.source!r}: {problem}; restore them or remove their rows, or skip them with "
                "--data.skip_broken True"
            )
        remarks.append(f"skipped (data.skip_broken): {problem}")
    values = csv_table.label_values([named.get(name, "") for name in ids])
    classes, (labels,) = encode_labels(values)
    if classes == tuple("0123456789") and values.dtype.kind == "i" and _have_cifar10_size(images):
        classes = _CIFAR10
        remarks.append(
            f"labels 0 to 9 are interpreted as CIFAR-10's, {classes[0]} to {classes[-1]}: write others as names"
        )
    return SourceData(Split("train", images, labels), None, classes, tuple(remarks), incomplete=bool(lost))


def _labels(content: bytes, data: Data) -> dict[str, str]:
    """Labels by id, as written, "" if missing. Raises UserError."""
    where, columns = f"data.source {data.source!r}: {_TABLE}", data.columns
    table = csv_table.parse(content, _TABLE, where)
    names = {name.lower(): name for name in table.columns}
    given = {"id": columns.image or names.get("id"), "label": columns.label or names.get("label")}
    for role, name in given.items():
        if name not in table.columns:
            raise UserError(
                f"{where} has the columns {table.columns}, none of them {name or role!r}: rename them to id and "
                "label, or name them with --data.columns.image and --data.columns.label"
            )
    found: dict[str, str] = {}
    twice = []
    cells = zip(table.rows, table.values(given["id"]), table.values(given["label"]), strict=True)
    for (line, _), written, label in cells:
        if not written:
            raise UserError(f"{where}, line {line}: no id: correct the row")
        name = PurePosixPath(written).stem if is_image_file(written) else written
        twice += [name] if name in found else []
        found[name] = label
    if twice:
        raise UserError(
            f"{where} has two rows or more of the ids {_format_ids(dict.fromkeys(twice))}: keep one of each"
        )
    return found


def _have_cifar10_size(images: Any) -> bool:
    try:
        return image_io.to_rgb(images[0]).shape == (32, 32, 3)
    except image_io.UndecodableImage:
        return False


def _numeric_order(name: str) -> tuple[int, int, str]:
    """Sort key of an id: numbers by value, before other strings."""
    return (0, int(name), name) if re.fullmatch(r"[0-9]{1,18}", name) else (1, 0, name)


def _format_ids(ids: Iterable[str]) -> str:
    """All ids, consecutive ones as a range: `3, 5-7, x`."""
    spans: list[list[str]] = []
    for name in sorted(ids, key=_numeric_order):
        if spans and all(map(str.isdecimal, (name, spans[-1][-1]))) and int(name) == int(spans[-1][-1]) + 1:
            spans[-1] = [spans[-1][0], name]
        else:
            spans.append([name])
    return ", ".join("-".join(span) for span in spans)

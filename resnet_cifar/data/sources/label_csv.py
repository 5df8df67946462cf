"""CSV files of labels beside images: their columns are detected. `label_splits` reads the rows."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import TEST, TRAIN, VALIDATION, Tree, shorten
from resnet_cifar.data.sources.csv_table import Table, parse

_IMAGES = ("file", "filename", "file_name", "image", "image_id", "image_name", "img", "path", "filepath", "id", "name")
_LABELS = ("label", "labels", "class", "class_name", "target", "category", "y")
_SPLITS = ("split", "subset", "set", "partition", "fold", "usage")
ROLES = {word: role[0] for role in (TRAIN, VALIDATION, TEST) for word in role}
ROLES |= {"publictest": VALIDATION[0], "privatetest": TEST[0]}  # FER2013's
_SAMPLE = 200  # rows that tell what a column holds


@dataclass(frozen=True)
class Labels:
    """A CSV whose columns are known. `problem`: what is missing, or ""; `found`: the image of each row, or None."""

    table: Table
    image: str = ""
    label: str = ""
    split: str = ""
    found: tuple[str | None, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """The split that the name of the file or its folder tells, else the name itself."""
        path = PurePosixPath(self.table.file)
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", path.stem)
        roles = {ROLES[word.lower()] for word in [*words, path.parent.name] if word.lower() in ROLES}
        return roles.pop() if len(roles) == 1 else path.stem


class _Finder:
    """Finds the image that a row names: by its path or the end of it, with or without extension."""

    def __init__(self, images: list[str]) -> None:
        self.by_name: dict[str, list[str]] = defaultdict(list)
        for image in images:
            name = _normal(PurePosixPath(image).name)
            for key in dict.fromkeys((name, name.rpartition(".")[0])):
                self.by_name[key].append(image)

    def find(self, value: str, table: str) -> list[str]:
        """The images that fit, best first; all are equally good if there are several."""
        wanted = PurePosixPath(_normal(value.replace("\\", "/")))
        fitting = [image for image in self.by_name.get(wanted.name, ()) if _ends_alike(image, wanted)]
        if len(fitting) < 2:
            return fitting
        folder, role = PurePosixPath(table).parent, Labels(Table(table, [], [])).name
        for closest in (
            lambda image: PurePosixPath(_normal(image)).with_suffix("") == (folder / wanted).with_suffix(""),
            lambda image: PurePosixPath(image).is_relative_to(folder) and folder != PurePosixPath("."),
            lambda image: role in {ROLES.get(part.lower()) for part in PurePosixPath(image).parts[:-1]},
        ):
            if len(fitting) > 1:
                fitting = list(filter(closest, fitting)) or fitting
        return fitting


def _ends_alike(image: str, wanted: PurePosixPath) -> bool:
    ours, theirs = (PurePosixPath(_normal(image)).parts[:-1], wanted.parts[:-1])
    count = min(len(ours), len(theirs))
    return ours[len(ours) - count :] == theirs[len(theirs) - count :]


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text.removeprefix("./"))


def find(tree: Tree, images: list[str], data: Data, must_be_read: bool) -> list[Labels]:
    """The CSV files of a tree, with their columns. Raises UserError for one that cannot be read.

    `must_be_read`: whether the images have no other labels. If they do, only a CSV of labels can stop anybody.
    """
    files = [file for file in tree.files if file.lower().endswith((".csv", ".tsv"))]
    files = [file for file in files if not PurePosixPath(file).name.startswith(".")]
    finder = _Finder(images) if files else None
    found = []
    for file in files:
        try:
            table = _table(tree.read(file), file, finder, data)
        except UserError as mistake:
            if must_be_read:
                raise
            found.append(Labels(Table(file, [], []), problem=str(mistake)))
        else:
            found.append(_columns(table, file, finder, data, must_be_read))
    return found


def _where(file: str, data: Data) -> str:
    return f"data.source {data.source!r}: {file}"


def _table(content: bytes, file: str, finder: _Finder, data: Data) -> Table:
    table = parse(content, file, _where(file, data))
    if any(cell and finder.find(cell, file) for cell in table.columns):  # a row of values, not of names
        table = parse(content, file, _where(file, data), has_header=False)
    return table


def _columns(table: Table, file: str, finder: _Finder, data: Data, must_be_read: bool) -> Labels:
    wanted = data.columns

    def share(column: str) -> float:
        values = [value for value in table.values(column)[:_SAMPLE] if value]
        return sum(bool(finder.find(value, file)) for value in values) / max(len(values), 1)

    for role, name in (("image", wanted.image), ("label", wanted.label)):
        if name and name not in table.columns:
            return Labels(table, problem=f"has no column {name!r} (data.columns.{role}), only {table.columns}")
    naming = (
        [wanted.image]
        if wanted.image
        else [
            name for name in table.columns if name != wanted.label and name.lower() not in _LABELS and share(name) > 0.5
        ]
    )
    image = _only(naming, _IMAGES)
    if image is None:
        what = "none of which names the images" if not naming else f"several of which name images, {naming}"
        return Labels(table, problem=f"has the columns {table.columns}, {what}: name it with --data.columns.image")
    others = [name for name in table.columns if name not in (image, "", "Unnamed: 0")]  # pandas writes its index
    splits = [name for name in others if name.lower() in _SPLITS and name != wanted.label]
    split = _split_column(table, splits, _where(file, data), must_be_read)
    labels = [wanted.label] if wanted.label else [name for name in others if name != split]
    label = _only(labels, _LABELS)
    if label is None:
        what = f"which of {labels} holds the labels is not clear" if labels else "none of which holds labels"
        return Labels(table, problem=f"has the columns {table.columns}, {what}: name it with --data.columns.label")
    found = []
    for (line, _), value in zip(table.rows, table.values(image), strict=True):
        fitting = finder.find(value, file) if value else []
        if len(fitting) > 1:
            sentence = (
                f"{_where(file, data)}, line {line}: {value!r} can be {shorten(map(repr, fitting))}: write its path "
                "from the folder of the CSV"
            )
            if must_be_read or label.lower() in _LABELS:
                raise UserError(sentence)
            return Labels(table, problem=sentence)
        found.append(fitting[0] if fitting else None)
    return Labels(table, image, label, split, tuple(found))


def _split_column(table: Table, names: list[str], where: str, must_be_read: bool) -> str:
    """The column that names the split of every row, or "". Raises UserError for one that does so in some rows only."""
    for name in names:
        values = {*table.values(name)}
        odd = sorted(value for value in values if value.lower() not in ROLES)
        if values and not odd:
            return name
        if must_be_read and len(odd) < len(values):
            known = sorted(values.difference(odd))
            raise UserError(
                f"{where}: the column {name!r} has {shorten(map(repr, odd))} beside {shorten(map(repr, known))}: write "
                "train, validation or test in these rows, remove them, or rename the column, which is then not used"
            )
    return ""


def _only(names: list[str], usual: Iterable[str]) -> str | None:
    """The only name, or the only one of the usual names."""
    by_word = [name for name in names if name.lower() in usual]
    return names[0] if len(names) == 1 else by_word[0] if len(by_word) == 1 else None


def check_agreement(tables: list[Labels], images: list[str], data: Data) -> None:
    """Raises UserError if a CSV labels the images of class folders otherwise than their folders do."""
    for each in tables:
        if each.problem or each.label.lower() not in _LABELS:
            continue
        labels = zip(each.found, each.table.values(each.label), strict=True)
        if any(image and label not in PurePosixPath(image).parts[:-1] for image, label in labels):
            raise UserError(
                f"data.source {data.source!r} has class folders and {each.table.file}, whose column {each.label!r} "
                f"labels the images otherwise: use the CSV with --data.columns.label {each.label}, or the folders by "
                "moving the CSV elsewhere"
            )

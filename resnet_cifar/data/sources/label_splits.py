"""The images that CSV files of labels list, in splits that several files, or a column, name."""

from __future__ import annotations

import itertools

import numpy as np

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources.base import (
    SourceData,
    Split,
    Tree,
    choose_held_out,
    choose_train,
    encode_labels,
    is_label,
    shorten,
)
from resnet_cifar.data.sources.csv_table import label_values
from resnet_cifar.data.sources.label_csv import ROLES, Labels


def read(tables: list[Labels], tree: Tree, images: list[str], data: Data) -> SourceData:
    """The images that the CSV files list, in their order. Raises UserError."""
    usable = [each for each in tables if not each.problem]
    if not usable:
        raise UserError(f"data.source {data.source!r}: {tables[0].table.file} {tables[0].problem}")
    parts = _parts(usable, data)

    def problem(name: str) -> str:
        return "" if is_label(label_values([label for _, label in parts[name][0]])).any() else "has no labels"

    chosen, unused = choose_held_out(parts, choose_train(parts, data), data, problem)
    rows = {role: parts[name][0] for role, name in chosen.items()}
    _check_overlap(rows, chosen, data)
    ends = np.cumsum([len(each) for each in rows.values()])[:-1]
    values = np.split(label_values([label for each in rows.values() for _, label in each]), ends)
    classes, labels = encode_labels(*values)
    splits = {
        role: Split(chosen[role], tree.images([image for image, _ in each]), own)
        for (role, each), own in zip(rows.items(), labels, strict=True)
    }
    listed = {image for each in parts.values() for image, _ in each[0]}
    unlisted = [repr(image) for image in images if image not in listed]
    skipped = [remark for _, remark in parts.values() if remark]
    remarks = [
        *(f"labels are read from {_describe(each)}" for each in usable),
        *(f"not used: {each.table.file} ({each.problem.partition(':')[0]})" for each in tables if each.problem),
        f"not used: the splits {shorten(unused)}" if unused else "",
        f"not used: images that no CSV lists: {shorten(unlisted)}" if unlisted else "",
        *skipped,
        *tree.remarks,
    ]
    remarks = tuple(filter(None, remarks))
    train, validation, test = (splits.get(role) for role in ("train", "validation", "test"))
    return SourceData(train, test, classes, remarks, validation, has_columns=True, incomplete=bool(skipped))


def _parts(usable: list[Labels], data: Data) -> dict[str, tuple[list[tuple[str, str]], str]]:
    """What `_rows` gives for every split: those of a column, or the whole file. Raises UserError."""
    pieces = []
    for each in usable:
        splits = [ROLES[value.lower()] for value in each.table.values(each.split)] if each.split else [""]
        pieces += [(each, split) for split in dict.fromkeys(splits)]
    names = [split or each.name for each, split in pieces]
    if len({*names}) < len(names):
        names = [f"{each.table.file}: {split}" if split else each.table.file for each, split in pieces]
    return {name: _rows(each, data, split) for name, (each, split) in zip(names, pieces, strict=True)}


def _check_overlap(rows: dict[str, list[tuple[str, str]]], chosen: dict[str, str], data: Data) -> None:
    """Raises UserError for images that are listed in two splits; `chosen`: the names of these by role."""
    for one, other in itertools.combinations(rows, 2):
        both = sorted({image for image, _ in rows[one]} & {image for image, _ in rows[other]})
        if both:
            raise UserError(
                f"data.source {data.source!r}: {len(both):,} image{'s are' if len(both) > 1 else ' is'} listed in "
                f"{chosen[one]!r} and in {chosen[other]!r} ({shorten(map(repr, both))}): remove each from one of them"
            )


def _describe(each: Labels) -> str:
    others = [repr(name) for name in each.table.columns if name not in (each.image, each.label, each.split)]
    used = f"the column {each.label!r} of {each.table.file}, file names from {each.image!r}"
    used += f", splits from {each.split!r}" if each.split else ""
    return used + (f"; not used: the columns {shorten(others)}" if others else "")


def _rows(each: Labels, data: Data, split: str = "") -> tuple[list[tuple[str, str]], str]:
    """(image, label) of every row, or of those of a split, and a remark on those that are skipped. Raises UserError."""
    where = f"data.source {data.source!r}: {each.table.file}"
    splits = each.table.values(each.split) if split else [""] * len(each.found)
    labels: dict[str, str] = {}
    missing = []
    cells = zip(each.table.rows, each.found, each.table.values(each.image), each.table.values(each.label), strict=True)
    for ((line, _), image, value, label), own in zip(cells, splits, strict=True):
        if split and ROLES[own.lower()] != split:
            continue
        if not value:
            raise UserError(f"{where}, line {line}: the column {each.image!r} is empty: correct the row")
        if image is None:
            missing.append(repr(value))
        elif labels.setdefault(image, label) != label:
            raise UserError(
                f"{where}, line {line}: {value!r} is {label!r}, and {labels[image]!r} in a line before: keep one of "
                "the rows"
            )
    problem = f"{len(missing):,} of the images in {each.table.file} do not exist ({shorten(missing)})"
    if missing and not data.skip_broken:
        raise UserError(
            f"data.source {data.source!r}: {problem}; restore them or remove their rows, or skip them with "
            "--data.skip_broken True"
        )
    return list(labels.items()), f"skipped (data.skip_broken): {problem}" if missing else ""

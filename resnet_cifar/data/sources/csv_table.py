"""CSV files as other programs write them, and the labels in one of their columns."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass

import numpy as np

from resnet_cifar.config.errors import UserError


@dataclass(frozen=True)
class Table:
    """A CSV: its columns, and its rows with their line numbers."""

    file: str
    columns: list[str]
    rows: list[tuple[int, list[str]]]

    def values(self, column: str) -> list[str]:
        """The values of a column."""
        place = self.columns.index(column)
        return [row[place] for _, row in self.rows]


def parse(content: bytes, file: str, where: str, has_header: bool = True) -> Table:
    """A CSV separated by commas, semicolons or tabs. Raises UserError."""
    try:
        text = content.decode("utf-8-sig")
        first = text.partition("\n")[0]
        separator = max(",;\t", key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read ({error}): save it as CSV in UTF-8") from None
    width = len(lines[0][1]) if lines else 0
    columns = lines.pop(0)[1] if lines and has_header else [f"column {n}" for n in range(1, width + 1)]
    if wide := [number for number, row in lines if len(row) > width]:
        raise UserError(f"{where}, line {wide[0]}: too many columns: correct the row")
    return Table(file, columns, [(number, row + [""] * (width - len(row))) for number, row in lines])


def label_values(words: list[str]) -> np.ndarray:
    """Labels as integers if all of them are, -1 if missing; else as strings, "" if missing, as negative numbers are."""
    words = ["" if re.fullmatch(r"-\d+", word) else word for word in words]
    if all(re.fullmatch(r"\d{1,18}|", word) for word in words):
        return np.array([int(word or -1) for word in words])
    return np.array(words)

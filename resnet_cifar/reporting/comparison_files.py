"""The tables and figures of compared recipes as files, for a paper: CSV, Markdown, LaTeX; PNG, SVG, PDF."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.reporting import comparison_curves
from resnet_cifar.reporting.recipe_comparison import Comparison, Sheet

MARK = "% written by resnet-cifar compare; needs \\usepackage{booktabs}"  # the first line of table.tex
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": "$<$"}
_TEX |= {">": "$>$", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}
_STATISTICS = ("metric", "seeds", "mean", "standard_deviation", "low", "high")
_TESTED = ("difference", "difference_low", "difference_high", "p", "p_adjusted", "test")


def write_files(found: Comparison, folder: Path) -> None:
    """Writes table.csv, table.md, table.tex, and figures/ with the mean curves."""
    folder.mkdir(parents=True, exist_ok=True)
    sheets = [sheet for sheet in (found.recipe_sheet(), found.test_sheet()) if sheet.rows]
    text = "\n".join([*map(markdown, sheets), *(f"{line}\n" for line in found.notes())])
    notes = "".join(f"% {' '.join(line.split())}\n" for line in found.notes())
    latex = f"{MARK}\n{notes}" + "\n".join(map(_latex, sheets))
    for name, content in (("table.csv", _csv(found)), ("table.md", text), ("table.tex", latex)):
        with atomic_write(folder / name, flush=False) as aside:
            aside.write_text(content, encoding="utf-8", newline="")
    lines = {each.name: each.curves() for each in found.recipes}
    comparison_curves.save_panels(lines, folder / "figures")


def _csv(found: Comparison) -> str:
    """A row for each recipe and metric, with unrounded numbers; a cell without a value is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(["recipe", *found.fields, *_STATISTICS, *_TESTED])
    for row in found.rows:
        number, spread, test = found.recipes.index(row.recipe), row.spread, row.test
        values = [each[number] for each in found.fields.values()]
        low, high = spread["interval"] or ("", "")
        cells = [row.metric, spread["runs"], spread["mean"], spread["standard_deviation"], low, high]
        if test:
            cells += [
                test.difference,
                *(test.interval or ("", "")),
                test.p,
                row.p,
                "paired" if test.paired else "Welch",
            ]
        writer.writerow([row.recipe.name, *values, *cells, *[""] * (len(_TESTED) * (test is None))])
    return stream.getvalue()


def markdown(sheet: Sheet) -> str:
    """A table of Markdown."""
    lines = [sheet.header, ["---"] * len(sheet.header), *sheet.rows]
    cells = [[_one_line(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _latex(sheet: Sheet) -> str:
    head, *body = [" & ".join(map(_tex, line)) + r" \\" for line in (sheet.header, *sheet.rows)]
    lines = [rf"\begin{{tabular}}{{{'l' * len(sheet.header)}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _tex(cell: str) -> str:
    escaped = "".join(_TEX.get(letter, letter) for letter in _one_line(cell))
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", escaped)  # a minus sign in place of a hyphen


def _one_line(cell: str) -> str:
    return " ".join(cell.split())

"""Compares runs, or recipes over seeds, on one HTML page: curves, differing recipe fields, and significance tests."""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_cifar.config.diff import differing_fields
from resnet_cifar.evaluation import significance
from resnet_cifar.evaluation.significance import McNemar
from resnet_cifar.reporting import (
    comparison_curves,
    comparison_files,
    curves,
    evaluation_summary,
    html_page,
    prediction_arrays,
    reproducibility,
    style,
)
from resnet_cifar.reporting.comparison_table import Run, unique_names
from resnet_cifar.reporting.curves import Curves
from resnet_cifar.reporting.per_class import accuracy
from resnet_cifar.reporting.recipe_comparison import Comparison, Sheet, compare_recipes
from resnet_cifar.reporting.recipe_groups import image_sentence


class TestPredictions(NamedTuple):
    """Positions of a run's test images, int64 [n] ascending, in the source `fingerprint`; whether each is `correct`."""

    fingerprint: str | None
    index: np.ndarray
    correct: np.ndarray


class Pair(NamedTuple):
    """The comparison of two runs on the same images, as a row of a table; `p` is adjusted by Holm."""

    names: tuple[str, str]
    gap: str
    interval: str
    alone: str
    p: str
    verdict: str


def write_comparison(runs: list[Run], file: Path) -> Path:
    """Writes the page of two or more runs, finished or not; returns it. Raises UserError if files are damaged.

    If several runs differ only in their seed, and others in more, it compares recipes.
    """
    names = unique_names([run.folder for run in runs])
    curves_of = {name: curves.read_curves(run.folder, run.recipe, []) for name, run in zip(names, runs, strict=True)}
    compared = compare_recipes(runs)
    places = list(range(len(runs)))  # of the runs' lines
    if compared.has_seeds:
        places = [compared.place(run) for run in runs]
        values = _recipe_values(compared)
    else:
        lines = {name: [found] if found else [] for name, found in curves_of.items()}
        values = {"recipes": None, "panels": _panels(lines), **_run_values(runs, names)}
        sentences = filter(None, (image_sentence(each.runs) for each in compared.recipes))
        values["spread"] = [*compared.seed_lines(), *sentences]
    shown = [_row(*each) for each in zip(places, names, runs, curves_of.values(), strict=True)]
    text = html_page.render(
        "compare.html",
        title=f"{len(compared.recipes)} recipes compared" if compared.has_seeds else f"{len(runs)} runs compared",
        runs=shown,
        lines=values.pop("legend", shown),
        without=[name for name, found in curves_of.items() if found is None],
        made=time.strftime("%Y-%m-%d %H:%M"),
        **values,
    )
    html_page.write_page(file, text)
    return file


def markdown_sections(runs: list[Run]) -> list[tuple[str, str]]:
    """The tables of the page as (heading, Markdown). Raises UserError if files are damaged."""
    names = unique_names([run.folder for run in runs])
    rows = [_row(number, name, run, None) for number, (name, run) in enumerate(zip(names, runs, strict=True))]
    columns = {"name": "run", "state": "state", "steps": "steps", "validation": "validation accuracy"}
    columns |= {"test": "test accuracy (95 % interval)", "images": "test images", "loss": "test loss"}
    found = [("Runs", [Sheet([*columns.values()], [[row[key] for key in columns] for row in rows])], [])]
    compared = compare_recipes(runs)
    if compared.has_seeds:
        values = _recipe_values(compared)["recipes"]
        found.append(("Recipes over seeds", values["sheets"], values["notes"]))
    else:
        values = _run_values(runs, names)
        if values["fields"]:
            cells = [[path, *map(str, each)] for path, each in values["fields"]]
            found.append(("Differing fields", [Sheet(["field", *names], cells)], []))
        header = ["first", "second", "difference, points", "95 % interval", "only one correct", "p (Holm)", "verdict"]
        tested = [[*each.names, *each[1:]] for each in values["pairs"]]
        found.append(("McNemar's test", [Sheet(header, tested)] if tested else [], values["incomparable"]))
    return [
        (heading, "\n".join([*map(comparison_files.markdown, sheets), *(f"{each}\n" for each in sentences)]))
        for heading, sheets, sentences in found
        if sheets or sentences
    ]


def _recipe_values(compared: Comparison) -> dict[str, Any]:
    """The sections of the page that compares recipes."""
    lines = {each.name: each.curves() for each in compared.recipes}
    shown = {
        "sheets": [sheet for sheet in (compared.recipe_sheet(), compared.test_sheet()) if sheet.rows],
        "notes": compared.notes(),
    }
    legend = [{"name": name, **_stroke(number)} for number, name in enumerate(lines)]
    return {"recipes": shown, "legend": legend, "panels": _panels(lines), "spread": []}


def _run_values(runs: list[Run], names: list[str]) -> dict[str, Any]:
    """The sections of the page that compares runs."""
    predictions = dict(zip(names, map(_test_predictions, runs), strict=True))
    fields = differing_fields([run.recipe for run in runs])
    return {
        "fields": fields.items(),
        "pairs": pairs(predictions),
        "incomparable": incomparable(predictions),
    }


def pairs(runs: dict[str, TestPredictions | None]) -> list[Pair]:
    """All pairs of comparable runs, with McNemar's p-values adjusted by Holm's method."""
    found = {
        (a, b): significance.mcnemar(runs[a].correct, runs[b].correct)
        for a, b in combinations(runs, 2)
        if runs[a] and runs[b] and not _incompatibility(runs[a], runs[b])
    }
    adjusted = significance.holm([each.p for each in found.values()])
    return [_pair(names, each, p) for (names, each), p in zip(found.items(), adjusted, strict=True)]


def _pair(names: tuple[str, str], found: McNemar, p: float) -> Pair:
    low, high = (100 * end for end in found.interval)
    return Pair(
        names,
        f"{100 * found.difference:+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        f"{found.first_only:,} and {found.second_only:,} of {found.images:,}",
        significance.p_text(p),
        significance.verdict(*names, found, p),
    )


def incomparable(runs: dict[str, TestPredictions | None]) -> list[str]:
    """One sentence per reason why runs or pairs of runs cannot be compared."""
    lacking = [name for name, found in runs.items() if found is None]
    sentences = [f"No final test predictions: {', '.join(lacking)}."] if lacking else []
    reasons: dict[str, list[str]] = {}
    for a, b in combinations([name for name in runs if name not in lacking], 2):
        if why := _incompatibility(runs[a], runs[b]):
            reasons.setdefault(why, []).append(f"{a} and {b}")
    return sentences + [f"Tested on {why}: {', '.join(names)}." for why, names in reasons.items()]


def _incompatibility(first: TestPredictions, second: TestPredictions) -> str:
    """Why two runs have different test images; empty if they are the same."""
    if first.fingerprint is None or first.fingerprint != second.fingerprint:
        return "images of different sources"
    return "" if np.array_equal(first.index, second.index) else "different images of one source"


def _final_metrics(run: Run) -> dict[str, Any] | None:
    """The evaluation of the final result; None for a run that is unfinished or being extended."""
    return evaluation_summary.read_metrics(run.folder, "test") if run.result else None


def _test_predictions(run: Run) -> TestPredictions | None:
    metrics, read = _final_metrics(run), prediction_arrays.read_predictions(run.folder / "predictions-test.parquet")
    if metrics is None or read is None:
        return None
    order = np.argsort(read.index)
    correct = read.logits.argmax(1) == read.labels
    return TestPredictions(metrics.get("fingerprint"), read.index[order], correct[order])


def _row(number: int, name: str, run: Run, curves_of: Curves | None) -> dict[str, Any]:
    status, metrics = run.status, _final_metrics(run)
    best = run.result.get("val/accuracy", curves_of.best["val/accuracy"] if curves_of and curves_of.best else None)
    return {
        "name": name,
        "folder": str(run.folder),
        **_stroke(number),
        "state": status.get("state", "claimed"),
        "steps": f"{status.get('step', 0):,}",
        "validation": "-" if best is None else accuracy(best),
        "test": evaluation_summary.accuracy_text(metrics) if metrics else "-",
        "images": f"{metrics['images']:,}" if metrics else "-",
        "loss": f"{metrics['loss']:.4f}" if metrics and "loss" in metrics else "-",
        "attempts": len(reproducibility.read_attempts(run.folder)) or "-",
    }


def _stroke(number: int) -> dict[str, str]:
    color, dash = comparison_curves.line_style(number)
    return {"color": style.css_variable(color), "dash": dash}


def _panels(lines: dict[str, list[Curves]]) -> list[str] | None:
    return comparison_curves.inline_panels(lines) if any(lines.values()) else None

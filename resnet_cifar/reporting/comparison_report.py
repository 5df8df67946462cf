"""Compares runs on one HTML page: curves, differing recipe fields, and significance tests of their test accuracy."""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_cifar.config.diff import differing_fields
from resnet_cifar.evaluation import significance
from resnet_cifar.evaluation.significance import McNemar
from resnet_cifar.reporting import (
    comparison_table,
    curves,
    evaluation_summary,
    html_page,
    prediction_arrays,
    reproducibility,
    style,
)
from resnet_cifar.reporting.comparison_table import Run
from resnet_cifar.reporting.curves import Curves
from resnet_cifar.reporting.per_class import accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (4.7, 2.8)  # inches, of a panel
_PANELS = {
    "training loss": "train/loss",
    "validation loss": "val/loss",
    "validation accuracy": "val/accuracy",
    "learning rate": "lr",
}
_STROKES = ("solid", (0, (5, 2)), (0, (1, 1.5)))  # for more runs than colors


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


def write_comparison(folders: list[Path], file: Path) -> Path:
    """Writes the page of two or more runs, finished or not; returns it. Raises UserError if files are damaged."""
    runs = comparison_table.read_runs(folders)
    names = unique_names(folders)
    curves_of = {name: curves.read_curves(run.folder, run.recipe, []) for name, run in zip(names, runs, strict=True)}
    predictions = dict(zip(names, map(_test_predictions, runs), strict=True))
    fields = differing_fields([run.recipe for run in runs])
    text = html_page.render(
        "compare.html",
        runs=[
            _row(number, name, run, curves_of[name]) for number, (name, run) in enumerate(zip(names, runs, strict=True))
        ],
        fields=fields.items(),
        panels=_panels(curves_of) if any(curves_of.values()) else None,
        without=[name for name, found in curves_of.items() if found is None],
        pairs=pairs(predictions),
        incomparable=incomparable(predictions),
        spread=list(comparison_table.seed_summary(runs)) if list(fields) == ["seed"] else [],
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    html_page.write_page(file, text)
    return file


def unique_names(folders: list[Path]) -> list[str]:
    """Names of the runs: their directory names, with as many parents as it takes to make them unique."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(map(str, folders), start=1)]


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
        f"{p:.2g}" if p >= 1e-4 else "< 0.0001",
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
        "color": _css_variable(number),
        "dash": ("solid", "dashed", "dotted")[number // len(style.SERIES) % len(_STROKES)],
        "state": status.get("state", "claimed"),
        "steps": f"{status.get('step', 0):,}",
        "validation": "-" if best is None else accuracy(best),
        "test": evaluation_summary.accuracy_text(metrics) if metrics else "-",
        "images": f"{metrics['images']:,}" if metrics else "-",
        "loss": f"{metrics['loss']:.4f}" if metrics and "loss" in metrics else "-",
        "attempts": len(reproducibility.read_attempts(run.folder)) or "-",
    }


def _css_variable(number: int) -> str:
    return style.css_variable(style.SERIES[number % len(style.SERIES)])


def _panels(curves_of: dict[str, Curves | None]) -> list[str]:
    from matplotlib.figure import Figure

    found = []
    for title, name in _PANELS.items():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        style.style_axes(axes, title, "epoch")
        for number, each in enumerate(curves_of.values()):
            if each is not None:
                _plot(axes, each, name, number)
        if "accuracy" in name:
            axes.yaxis.set_major_formatter(style.percent())
        axes.set_xlim(left=0)
        found.append(style.inline(figure, title))
    return found


def _plot(axes: Axes, found: Curves, name: str, number: int) -> None:
    color, stroke = style.SERIES[number % len(style.SERIES)], _STROKES[number // len(style.SERIES) % len(_STROKES)]
    marked = {"marker": "o", "markersize": 3} if name.startswith("val/") and len(found.evaluations) < 40 else {}
    axes.plot(*found.line(name), color=color, linestyle=stroke, linewidth=1.5, **marked)

"""Several run folders -> one page: their curves over each other, where their recipes differ, and who is better."""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_cifar.evaluation import significance
from resnet_cifar.evaluation.significance import McNemar
from resnet_cifar.reporting import (
    comparison_table,
    curves,
    evaluation_summary,
    html_page,
    prediction_table,
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
_STROKES = ("solid", (0, (5, 2)), (0, (1, 1.5)))  # for more runs than colours


class Labelled(NamedTuple):
    """Which test images a run has labelled, int64 [n] ascending, of a source's `fingerprint`, and which rightly."""

    fingerprint: str
    index: np.ndarray
    right: np.ndarray


class Pair(NamedTuple):
    """Two runs that have labelled the same images, and who is better, as a line of a table; `p` is Holm's."""

    names: tuple[str, str]
    gap: str
    interval: str
    alone: str
    p: str
    verdict: str


def write(folders: list[Path], file: Path) -> Path:
    """Writes the page of two runs or more, as far as they are; returns it. Raises UserError where files are damaged."""
    runs = comparison_table.read(folders)
    names = unique_names(folders)
    drawn = {name: curves.read(run.folder, run.recipe, []) for name, run in zip(names, runs, strict=True)}
    labelled = dict(zip(names, map(_labelled, runs), strict=True))
    fields = comparison_table.differing(runs)
    text = html_page.render(
        "compare.html",
        runs=[
            _line(number, name, run, drawn[name]) for number, (name, run) in enumerate(zip(names, runs, strict=True))
        ],
        fields=[(field, [comparison_table.word(run.values, field) for run in runs]) for field in fields],
        panels=_panels(drawn) if any(drawn.values()) else None,
        without=[name for name, found in drawn.items() if found is None],
        pairs=pairs(labelled),
        incomparable=incomparable(labelled),
        spread=list(comparison_table.spread_of([run.result for run in runs])) if fields == ["seed"] else [],
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    html_page.write(file, text)
    return file


def unique_names(folders: list[Path]) -> list[str]:
    """What the runs are called: their folders' names, with as many parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(map(str, folders), start=1)]


def pairs(runs: dict[str, Labelled | None]) -> list[Pair]:
    """Every two runs that can be compared. McNemar's p-values are corrected by Holm for as many comparisons."""
    found = {
        (a, b): significance.mcnemar(runs[a].right, runs[b].right)
        for a, b in combinations(runs, 2)
        if runs[a] and runs[b] and not _why_not(runs[a], runs[b])
    }
    corrected = significance.holm([each.p for each in found.values()])
    return [_told(names, each, p) for (names, each), p in zip(found.items(), corrected, strict=True)]


def _told(names: tuple[str, str], found: McNemar, p: float) -> Pair:
    low, high = (100 * end for end in found.interval)
    return Pair(
        names,
        f"{100 * found.difference:+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        f"{found.first_only:,} and {found.second_only:,} of {found.images:,}",
        f"{p:.2g}" if p >= 1e-4 else "< 0.0001",
        significance.verdict(*names, found, p),
    )


def incomparable(runs: dict[str, Labelled | None]) -> list[str]:
    """A sentence for each reason why runs, or pairs of them, are not in the table."""
    lacking = [name for name, found in runs.items() if found is None]
    said = [f"No test predictions of a result of their own: {', '.join(lacking)}."] if lacking else []
    reasons: dict[str, list[str]] = {}
    for a, b in combinations([name for name in runs if name not in lacking], 2):
        if why := _why_not(runs[a], runs[b]):
            reasons.setdefault(why, []).append(f"{a} and {b}")
    return said + [f"Tested on {why}: {', '.join(names)}." for why, names in reasons.items()]


def _why_not(first: Labelled, second: Labelled) -> str:
    """Why two runs cannot be compared: the test is about the same images. Empty where they can."""
    if first.fingerprint != second.fingerprint:
        return "images of other sources"
    return "" if np.array_equal(first.index, second.index) else "other images of one source"


def _scores(run: Run) -> dict[str, Any] | None:
    """The scoring of its result: one of before the run was extended, or on its way, is not."""
    return evaluation_summary.read_scores(run.folder, "test") if run.result else None


def _labelled(run: Run) -> Labelled | None:
    scores, read = _scores(run), prediction_table.read(run.folder / "predictions-test.parquet")
    if scores is None or read is None:
        return None
    logits, labels, index = read
    order = np.argsort(index)
    return Labelled(scores["fingerprint"], index[order], (logits.argmax(1) == labels)[order])


def _line(number: int, name: str, run: Run, drawn: Curves | None) -> dict[str, Any]:
    status, scores = run.status, _scores(run)
    best = run.result.get("val/accuracy", drawn.best["val/accuracy"] if drawn and drawn.best else None)
    return {
        "name": name,
        "folder": str(run.folder),
        "colour": _variable(number),
        "dash": ("solid", "dashed", "dotted")[number // len(style.SERIES) % len(_STROKES)],
        "state": status.get("state", "claimed"),
        "steps": f"{status.get('step', 0):,}",
        "validation": "-" if best is None else accuracy(best),
        "test": evaluation_summary.accuracy_in_words(scores) if scores else "-",
        "images": f"{scores['images']:,}" if scores else "-",
        "loss": f"{scores['loss']:.4f}" if scores else "-",
        "attempts": len(reproducibility.starts(run.folder)) or "-",
    }


def _variable(number: int) -> str:
    return style.variable(style.SERIES[number % len(style.SERIES)])


def _panels(drawn: dict[str, Curves | None]) -> list[str]:
    from matplotlib.figure import Figure

    found = []
    for title, name in _PANELS.items():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        style.dress(axes, title, "epoch")
        for number, each in enumerate(drawn.values()):
            if each is not None:
                _draw(axes, each, name, number)
        if "accuracy" in name:
            axes.yaxis.set_major_formatter(style.percent())
        axes.set_xlim(left=0)
        found.append(style.inline(figure, title))
    return found


def _draw(axes: Axes, found: Curves, name: str, number: int) -> None:
    colour, stroke = style.SERIES[number % len(style.SERIES)], _STROKES[number // len(style.SERIES) % len(_STROKES)]
    marked = {"marker": "o", "markersize": 3} if name.startswith("val/") and len(found.scores) < 40 else {}
    axes.plot(*found.line(name), color=colour, linestyle=stroke, linewidth=1.5, **marked)

"""Several run folders -> one page: their curves over each other, where their recipes differ, and who is better."""

from __future__ import annotations

import time
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_cifar.reporting import compare, curves, guesses, ink, page, provenance, significance
from resnet_cifar.reporting.breakdown import percent
from resnet_cifar.reporting.compare import Run
from resnet_cifar.reporting.curves import Curves
from resnet_cifar.run_folder import read_json

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
    """Two runs, and a sentence on who is better; `is_told` where both have labelled the same images."""

    names: tuple[str, str]
    said: str
    is_told: bool


def write(folders: list[Path], file: Path) -> Path:
    """Writes the page of two runs or more, as far as they are; returns it. Raises Mistake where files are damaged."""
    runs = compare.read(folders)
    names = unique_names(folders)
    drawn = {name: curves.read(run.folder, run.recipe, []) for name, run in zip(names, runs, strict=True)}
    found = pairs(dict(zip(names, map(_labelled, folders), strict=True)))
    fields = compare.differing(runs)
    text = page.render(
        "compare.html",
        runs=[_line(name, number, run) for number, (name, run) in enumerate(zip(names, runs, strict=True))],
        fields=[(field, [compare.word(run.values, field) for run in runs]) for field in fields],
        panels=_panels(drawn) if any(drawn.values()) else None,
        without=[name for name, found in drawn.items() if found is None],
        pairs=found,
        told=sum(pair.is_told for pair in found),
        spread=list(compare.spread_of([run.result for run in runs])) if fields == ["seed"] else [],
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    page.write(file, text)
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
    """Every two runs. McNemar's p-values are corrected by Holm for as many comparisons as could be made."""
    found = {}
    for a, b in combinations(runs, 2):
        first, second = runs[a], runs[b]
        if first and second and _are_same(first, second):
            found[a, b] = significance.mcnemar(first.right, second.right)
    corrected = dict(zip(found, significance.holm([each.p for each in found.values()]), strict=True))
    told = []
    for a, b in combinations(runs, 2):
        if (a, b) in found:
            said = significance.sentence(a, b, found[a, b], corrected[a, b], len(found))
        else:
            said = _why_not(a, b, runs)
        told.append(Pair((a, b), said, (a, b) in found))
    return told


def _are_same(first: Labelled, second: Labelled) -> bool:
    return first.fingerprint == second.fingerprint and np.array_equal(first.index, second.index)


def _why_not(a: str, b: str, runs: dict[str, Labelled | None]) -> str:
    lacking = [name for name in (a, b) if runs[name] is None]
    if lacking:
        return f"Not comparable: {' and '.join(lacking)} has no test predictions of its own."
    why = "other images of one source" if runs[a].fingerprint == runs[b].fingerprint else "images of other sources"
    return f"Not comparable: {a} and {b} were tested on {why}, and the test is about the same images."


def _labelled(run: Path) -> Labelled | None:
    scores, file = read_json(run / "eval-test.json"), run / "predictions-test.parquet"
    if scores is None or not file.is_file():
        return None
    logits, labels, index = guesses.read(file)
    order = np.argsort(index)
    return Labelled(scores["fingerprint"], index[order], (logits.argmax(1) == labels)[order])


def _line(name: str, number: int, run: Run) -> dict[str, Any]:
    status, result, scores = run.status, run.result, read_json(run.folder / "eval-test.json")
    low, high = scores["accuracy_interval"] if scores else (None, None)
    return {
        "name": name,
        "folder": str(run.folder),
        "colour": _variable(number),
        "dash": ("solid", "dashed", "dotted")[number // len(ink.SERIES) % len(_STROKES)],
        "state": status.get("state", "claimed"),
        "steps": f"{status.get('step', 0):,}",
        "validation": percent(result["val/accuracy"]) if "val/accuracy" in result else "-",
        "test": f"{percent(scores['accuracy'])} ({percent(low)} to {percent(high)})" if scores else "-",
        "images": f"{scores['images']:,}" if scores else "-",
        "loss": f"{scores['loss']:.4f}" if scores else "-",
        "starts": len(provenance.starts(run.folder)) or "-",
    }


def _variable(number: int) -> str:
    return ink.variable(ink.SERIES[number % len(ink.SERIES)])


def _panels(drawn: dict[str, Curves | None]) -> list[str]:
    from matplotlib.figure import Figure

    found = []
    for title, name in _PANELS.items():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        ink.dress(axes, title, "epoch")
        for number, each in enumerate(drawn.values()):
            if each is not None:
                _draw(axes, each, name, number)
        if "accuracy" in name:
            axes.yaxis.set_major_formatter(ink.percent())
        axes.set_xlim(left=0)
        found.append(ink.inline(figure, title))
    return found


def _draw(axes: Axes, found: Curves, name: str, number: int) -> None:
    colour, stroke = ink.SERIES[number % len(ink.SERIES)], _STROKES[number // len(ink.SERIES) % len(_STROKES)]
    marked = {"marker": "o", "markersize": 3} if name.startswith("val/") and len(found.scores) < 40 else {}
    axes.plot(*found.line(name), color=colour, linestyle=stroke, linewidth=1.5, **marked)

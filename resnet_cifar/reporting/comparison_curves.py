"""Curves of several runs, or of several recipes: their mean over seeds, and a band of one standard deviation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resnet_cifar.reporting import style
from resnet_cifar.reporting.curves import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE_KINDS = ("png", "svg", "pdf")
_SIZE = (4.7, 2.8)  # inches, of a panel
_PANELS = {
    "training loss": "train/loss",
    "validation loss": "val/loss",
    "validation accuracy": "val/accuracy",
    "learning rate": "lr",
}
_DASHES = {"solid": "solid", "dashed": (0, (5, 2)), "dotted": (0, (1, 1.5))}  # CSS name -> matplotlib's


def line_style(number: int) -> tuple[str, str]:
    """(color, CSS name of the dash pattern) of the line with this number; they repeat after 18."""
    dashes = list(_DASHES)
    return style.SERIES[number % len(style.SERIES)], dashes[number // len(style.SERIES) % len(dashes)]


def mean_line(runs: Sequence[Curves], name: str) -> tuple[list[float], np.ndarray, np.ndarray | None]:
    """(epochs, mean, standard deviation) of `name` over runs, float64 [points]; the last is None for one run.

    Only steps at which every run has a value count: runs that stop early would change what the mean is of.
    """
    rows = [{row["step"]: row for row in run.rows if name in row} for run in runs]
    steps = sorted(set.intersection(*map(set, rows)))
    values = np.array([[of_run[step][name] for step in steps] for of_run in rows], np.float64)
    # Training rows are averaged, as in a run's report; an evaluation is a point of its own.
    every = 1 if name.startswith("val/") else max(run.rows_per_point for run in runs)
    starts = range(0, len(steps), every)
    points = np.array([values[:, start : start + every].mean(1) for start in starts]).reshape(-1, len(runs))
    epochs = [rows[0][steps[min(start + every, len(steps)) - 1]]["epoch"] for start in starts]
    return epochs, points.mean(1), points.std(1, ddof=1) if len(runs) > 1 else None


def inline_panels(lines: Mapping[str, Sequence[Curves]]) -> list[str]:
    """The panels as inline SVG. `lines`: name -> the runs whose mean is drawn, in the order of `line_style`."""
    return [style.inline(figure, title) for title, figure in _figures(lines)]


def save_panels(lines: Mapping[str, Sequence[Curves]], folder: Path) -> None:
    """Writes each panel with a legend, such as validation-accuracy.pdf, as PNG, SVG and PDF."""
    for title, figure in _figures(lines):
        if any(lines.values()):
            figure.legend(frameon=False, fontsize=9, labelcolor=style.INK, loc="outside lower center", ncols=2)
        style.save(figure, folder, title.replace(" ", "-"), FIGURE_KINDS)


def _figures(lines: Mapping[str, Sequence[Curves]]) -> Iterator[tuple[str, Figure]]:
    from matplotlib.figure import Figure

    for title, name in _PANELS.items():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        style.style_axes(axes, title, "epoch")
        for number, (label, runs) in enumerate(lines.items()):
            if runs:
                _plot(axes, runs, name, number, label)
        if "accuracy" in name:
            axes.yaxis.set_major_formatter(style.percent())
        axes.set_xlim(left=0)
        yield title, figure


def _plot(axes: Axes, runs: Sequence[Curves], name: str, number: int, label: str) -> None:
    color, dash = line_style(number)
    epochs, mean, deviation = mean_line(runs, name)
    marked = {"marker": "o", "markersize": 3} if name.startswith("val/") and len(epochs) < 40 else {}
    # A label that begins with an underscore has no entry in matplotlib's legend, and dollars enclose a formula.
    text = "\u200b" * label.startswith("_") + label.replace("$", r"\$")
    axes.plot(epochs, mean, color=color, linestyle=_DASHES[dash], linewidth=1.5, label=text, **marked)
    if deviation is not None:
        axes.fill_between(epochs, mean - deviation, mean + deviation, color=color, alpha=0.18, linewidth=0)

"""Training curves from metrics.jsonl, with phases, the best checkpoint and interruptions marked.

The same panels are drawn for the page (separate, so that a phone stacks them) and as one figure for a paper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_cifar.config.schema import METRIC_NAMES, Metric, Recipe, selection_key
from resnet_cifar.reporting import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 400  # of a curve: more are averaged
_SIZE = (4.7, 2.8)  # inches, of a panel
_STOP = (0, (4, 2))  # dash pattern of an interruption


@dataclass(frozen=True)
class Curves:
    """`rows` of metrics.jsonl; epochs at which a phase ends (`phases`) and the run was interrupted (`stops`).

    `best`: the row of the best checkpoint, by the validation metric `select_by`; `mixed`: whether training images are
    mixed, so that training accuracy counts only the larger of two labels.
    """

    rows: list[dict[str, Any]]
    phases: list[float] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)
    best: dict[str, Any] | None = None
    select_by: Metric = "accuracy"
    mixed: bool = False

    @property
    def rows_per_point(self) -> int:
        """Number of rows that are averaged for one point of a training curve."""
        return max(1, -(-len(self.rows) // _POINTS))

    @property
    def steps_per_epoch(self) -> float:
        """Updates in one epoch; infinite before the first one."""
        return self.rows[-1]["step"] / self.rows[-1]["epoch"] if self.rows[-1]["step"] else math.inf

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The rows with validation metrics."""
        return [row for row in self.rows if "val/accuracy" in row]

    def line(self, name: str) -> tuple[list[float], list[float]]:
        """(epochs, values): the last epoch and the mean value of every `rows_per_point` rows."""
        kept = [row for row in self.rows if name in row]
        groups = [kept[start : start + self.rows_per_point] for start in range(0, len(kept), self.rows_per_point)]
        return [g[-1]["epoch"] for g in groups], [sum(row[name] for row in g) / len(g) for g in groups]


TRAINING = {False: "training", True: "training, mixed images"}  # labels; the key is whether images are mixed


def read_curves(run: Path, recipe: Recipe, attempts: Sequence[dict[str, Any]]) -> Curves | None:
    """The curves of a run so far, or None without rows. `attempts`: the list in attempts.json."""
    return from_rows(read_rows(run / "metrics.jsonl"), recipe, attempts)


def from_rows(rows: list[dict[str, Any]], recipe: Recipe, attempts: Sequence[dict[str, Any]]) -> Curves | None:
    """The curves of the `rows` of a metrics.jsonl, or None without rows."""
    if not rows:
        return None
    curves = Curves(rows)
    per_epoch, last = curves.steps_per_epoch, rows[-1]["epoch"]
    ends = list(accumulate(max(phase.epochs, phase.min_steps / per_epoch) for phase in recipe.phases))[:-1]
    select_by = recipe.evaluate.select_by
    best = max(curves.evaluations, key=lambda row: selection_key(row, select_by), default=None)  # the first of equals
    phases, stops = [end for end in ends if end < last], {step / per_epoch for step, _ in interruptions(attempts)}
    return Curves(rows, phases, sorted(stops), best, select_by, recipe.augment.mixes)


def interruptions(attempts: Sequence[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """(step, attempt): the attempts that ended early, and the steps from which the next ones resumed."""
    # Extending a finished run is no interruption.
    return [(after["from_step"], before) for before, after in pairwise(attempts) if before.get("state") != "finished"]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl that may still grow; incomplete lines are left out."""
    return parse_rows(file.read_bytes()) if file.is_file() else []


def parse_rows(content: bytes) -> list[dict[str, Any]]:
    """The rows among the lines of a metrics.jsonl, or of a part of it; incomplete lines are left out."""
    rows = []
    for line in content.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "epoch" in row:
            rows.append(row)
    return rows


def figure(curves: Curves) -> Figure:
    """The four panels in one figure, for a paper."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(2 * _SIZE[0], 2 * _SIZE[1]), layout="constrained")
    drawn.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for axes, draw in zip(drawn.subplots(2, 2).ravel(), PANELS.values(), strict=True):
        draw(axes, curves)
    return drawn


def panels(curves: Curves) -> dict[str, str]:
    """Name -> panel as inline SVG in the colors of the page."""
    from matplotlib.figure import Figure

    found = {}
    for name, draw in PANELS.items():
        drawn = Figure(figsize=_SIZE, layout="constrained")
        draw(drawn.subplots(), curves)
        found[name] = style.inline(drawn, name)
    return found


def _loss(axes: Axes, curves: Curves) -> None:
    _pair(axes, curves, "loss")


def _accuracy(axes: Axes, curves: Curves) -> None:
    if curves.select_by not in ("accuracy", "loss"):
        epochs = [row["epoch"] for row in curves.evaluations]
        values = [row[f"val/{curves.select_by}"] for row in curves.evaluations]
        label = f"validation, {METRIC_NAMES[curves.select_by]}"
        axes.plot(epochs, values, color=style.FIRST, linewidth=1.2, linestyle=(0, (5, 2)), label=label)
    _pair(axes, curves, "accuracy")
    axes.yaxis.set_major_formatter(style.percent())


def _rate(axes: Axes, curves: Curves) -> None:
    style.style_axes(axes, "learning rate", "epoch")
    axes.plot(*curves.line("lr"), color=style.FIRST, linewidth=1.6)
    axes.set_ylim(bottom=0)
    _mark(axes, curves)


def _speed(axes: Axes, curves: Curves) -> None:
    style.style_axes(axes, "throughput, images/s", "epoch")
    axes.plot(*curves.line("images_per_second"), color=style.FIRST, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(style.thousands())
    _mark(axes, curves)


PANELS: dict[str, Callable[[Axes, Curves], None]] = {
    "loss": _loss,
    "accuracy": _accuracy,
    "learning rate": _rate,
    "throughput": _speed,
}


def _pair(axes: Axes, curves: Curves, name: str) -> None:
    style.style_axes(axes, name, "epoch")
    axes.plot(*curves.line(f"train/{name}"), color=style.SECOND, linewidth=1.2, label=TRAINING[curves.mixed])
    if evaluations := curves.evaluations:
        places, values = [row["epoch"] for row in evaluations], [row[f"val/{name}"] for row in evaluations]
        size = 3.5 if len(evaluations) < 40 else 0
        axes.plot(places, values, color=style.FIRST, linewidth=1.8, marker="o", markersize=size, label="validation")
        best = curves.best
        axes.plot(
            best["epoch"], best[f"val/{name}"], "*", markersize=13, color=style.FIRST, label="best checkpoint", zorder=4
        )
    _mark(axes, curves)
    if curves.stops:
        axes.plot([], [], color=style.WRONG, linewidth=0.9, linestyle=_STOP, label="interrupted, resumed")
    axes.legend(frameon=False, fontsize=9, labelcolor=style.INK, handlelength=1.4, borderaxespad=0.2)


def _mark(axes: Axes, curves: Curves) -> None:
    axes.set_xlim(left=0)
    top = axes.get_xaxis_transform()
    for number, end in enumerate(curves.phases, start=1):
        axes.axvline(end, color=style.MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        axes.text(end, 1.0, f" phases.{number}", transform=top, fontsize=8, color=style.MUTED, va="bottom")
    for stop in curves.stops:
        axes.axvline(stop, color=style.WRONG, linewidth=0.9, linestyle=_STOP, zorder=1)

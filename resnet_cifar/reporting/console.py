"""Console output of rank 0: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from resnet_cifar.config.schema import METRIC_NAMES, Metric

_CLOSED_OUTPUT = (OSError, SystemExit)  # rich exits the program when its output is a closed pipe
_MAX_LINES = 100  # of progress per run, if the output is no terminal
_ROWS = 5  # whose speed tells how much time is left
T = TypeVar("T")


class Screen:
    """Prints if `shown`, which is true on rank 0 only."""

    def __init__(self, shown: bool) -> None:
        self._console = Console(quiet=not shown, highlight=False, soft_wrap=True, emoji=False)
        self._progress: Progress | None = None
        self._task: Any = None
        self._steps = 0
        self._last_line = 0
        self._rows: deque[dict[str, Any]] = deque(maxlen=1 + _ROWS)

    def say(self, text: str) -> None:
        """Prints a line."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Prints a warning."""
        self._print(f"warning: {text}", style="yellow")

    def facts(self, rows: Iterable[tuple[str, str]]) -> None:
        """Prints names and values, aligned."""
        rows = list(rows)
        width = max([12, *(len(name) for name, _ in rows)])
        for name, value in rows:
            self._print(f"{name:<{width}} {value}")

    def begin(self, steps: int, done: int) -> None:
        """Starts the progress display at `done` of `steps`."""
        self._steps, self._last_line = steps, done
        self._rows.clear()
        if not self._console.is_terminal or self._console.quiet:
            return
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=steps, completed=done, facts="")
        self._progress.start()

    def row(self, row: dict[str, Any]) -> None:
        """Shows a row of metrics.jsonl."""
        self._rows.append(row)
        facts = [f"epoch {row['epoch']:.2f}", f"loss {row['train/loss']:.3f}", f"lr {row['lr']:.2g}"]
        facts += [speed(row["images_per_second"])] + ([f"{row['mfu']:.0%} MFU"] if "mfu" in row else [])
        line = "  ".join(filter(None, [*facts, time_left(self._steps, self._rows)]))
        if self._progress is not None:
            with contextlib.suppress(*_CLOSED_OUTPUT):
                self._progress.update(self._task, completed=row["step"], facts=line)
        elif row["step"] - self._last_line >= self._steps / _MAX_LINES or row["step"] == self._steps:
            self._last_line = row["step"]
            self.say(f"step {row['step']}/{self._steps}  {line}")

    def score(self, row: dict[str, Any], best: bool, select_by: Metric) -> None:
        """Prints a line for an evaluation on the validation split, which may be the best so far by `select_by`."""
        shown = dict.fromkeys(("accuracy", "loss", select_by))
        values = "  ".join(f"{METRIC_NAMES[name]} {row[f'val/{name}']:.4f}" for name in shown)
        self.say(f"epoch {row['epoch']:6.2f}  validation {values}{'  (best so far)' if best else ''}")

    def end(self) -> None:
        """Removes the progress bar."""
        if self._progress is not None:
            with contextlib.suppress(*_CLOSED_OUTPUT):
                self._progress.stop()
            self._progress = None

    def table(self, title: str, rows: Sequence[tuple[str, str]]) -> None:
        """Prints the closing table, as plain lines if the output is no terminal."""
        if not self._console.is_terminal:
            self.say(title)
            self.facts(rows)
            return
        table = Table(title=title, show_header=False, title_justify="left")
        for row in rows:
            table.add_row(*map(Text, row))  # file and class names may look like markup
        self._print(table)

    def _print(self, what: str | Table, style: str | None = None) -> None:
        """Prints and ignores a closed output: closing the terminal must not end a run."""
        with contextlib.suppress(*_CLOSED_OUTPUT):
            self._console.print(what, style=style, markup=False)


def listing() -> Console:
    """A console for tables on stdout, which does not wrap lines in a pipe."""
    console = Console(highlight=False, markup=False, emoji=False)  # names may look like markup
    if not console.is_terminal:
        console.width = 10_000
    return console


def track(items: Iterable[T], total: int, description: str, shown: bool) -> Iterable[T]:
    """The items, with a progress bar on standard error if that is a terminal and the bar is `shown`."""
    if not (shown and sys.stderr.isatty()):
        yield from items
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, total=total, description=description)


def speed(images_per_second: float) -> str:
    """1,234 images/s or 0.34 images/s; nothing if it is not known."""
    if not images_per_second:
        return ""
    return f"{images_per_second:{',.0f' if images_per_second >= 10 else '.2g'}} images/s"


def time_left(steps: int, rows: Sequence[dict[str, Any]]) -> str:
    """`3 min left` after the `rows` of metrics.jsonl, the latest last; nothing at the end, and before it is known."""
    seconds = seconds_left(steps, rows)
    return "" if seconds is None else f"{duration(seconds)} left"


def seconds_left(steps: int, rows: Sequence[dict[str, Any]]) -> float | None:
    """Seconds from the last of the `rows` of metrics.jsonl to update `steps`; None at the end, and before it is known.

    The first row includes warm-up and compilation, and so does that after an interruption: it is outvoted.
    """
    speeds = [row["images_per_second"] for row in rows][-_ROWS:]
    typical = statistics.median(speeds if len(rows) > _ROWS else speeds[1:]) if len(rows) > 1 else 0
    last = rows[-1]
    if last["step"] >= steps or not typical:
        return None
    return (steps - last["step"]) / last["step"] * last["images"] / typical


def duration(seconds: float) -> str:
    """<1 s, 12 s, 3 min or 1.5 h."""
    if seconds < 0.5:
        return "<1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

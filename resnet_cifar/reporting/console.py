"""Console output of rank 0: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from resnet_cifar.config.schema import METRIC_NAMES, Metric

_CLOSED_OUTPUT = (OSError, SystemExit)  # rich exits the program when its output is a closed pipe
_MAX_LINES = 100  # of progress per run, if the output is no terminal


class Screen:
    """Prints if `shown`, which is true on rank 0 only."""

    def __init__(self, shown: bool) -> None:
        self._console = Console(quiet=not shown, highlight=False, soft_wrap=True, emoji=False)
        self._progress: Progress | None = None
        self._task: Any = None
        self._steps = 0
        self._last_line = 0

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
        if not self._console.is_terminal or self._console.quiet:
            return
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("", total=steps, completed=done, facts="")
        self._progress.start()

    def row(self, row: dict[str, Any]) -> None:
        """Shows a row of metrics.jsonl."""
        speed = row["images_per_second"]
        left = (self._steps - row["step"]) / row["step"] * row["images"] / speed
        facts = f"epoch {row['epoch']:.2f}  loss {row['train/loss']:.3f}  lr {row['lr']:.2g}  {speed:,.0f} images/s"
        facts += f"  {row['mfu']:.0%} MFU" if "mfu" in row else ""
        if self._progress is not None:
            with contextlib.suppress(*_CLOSED_OUTPUT):
                self._progress.update(self._task, completed=row["step"], facts=facts)
        elif row["step"] - self._last_line >= self._steps / _MAX_LINES or row["step"] == self._steps:
            self._last_line = row["step"]
            self.say(f"step {row['step']}/{self._steps}  {facts}  {duration(left)} left")

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


def duration(seconds: float) -> str:
    """12 s, 3 min or 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

"""A run directory as it grows: only what is new in metrics.jsonl is read, and other files only when they change."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.reporting import curves, evaluation_summary, reproducibility
from resnet_cifar.reporting.curves import Curves
from resnet_cifar.reporting.reproducibility import Attempt
from resnet_cifar.reporting.run_listing import ListedRun

_POINTS = 400  # of a line: more are averaged
T = TypeVar("T")
Stamp = tuple[int, int, int] | None
Line = list[tuple[int, float, float]]  # step, epoch, value


class Stop(NamedTuple):
    """Where an interrupted run was resumed, and how the attempt before had ended."""

    step: int
    epoch: float
    text: str


class RunFeed:
    """What is known of the run in `folder`, as of the latest `read`.

    `listed`: its state and progress; `curves`: None before the first row; `result`: the numbers of result.json;
    `test`: the accuracy on the test split, in words; `facts`: of its environment. `error`: why a file of the run cannot
    be used, or ""; the other attributes are then those of the read before.
    """

    def __init__(self, folder: Path, listed: ListedRun) -> None:
        self.folder, self.listed = folder, listed
        self.recipe: Recipe | None = None
        self.curves: Curves | None = None
        self.lines: dict[str, Line] = {}
        self.stops: list[Stop] = []
        self.attempts: list[tuple[dict[str, Any], Attempt]] = []
        self.status: dict[str, Any] = {}
        self.result: dict[str, float] = {}
        self.facts: dict[str, str] = {}
        self.test, self.error = "", ""
        self._rows: list[dict[str, float]] = []
        self._inode, self._read_to, self._last = 0, 0, b""
        self._kept: dict[str, tuple[Any, Any]] = {}

    def read(self, listed: ListedRun) -> bool:
        """Reads what has changed; whether anything has."""
        before, self.listed, self.error = self._seen(), listed, ""
        self.guarded(self._read)
        if listed.state == "damaged":
            self.error = listed.why
        return before != self._seen()

    def guarded(self, read: Callable[[], T]) -> T | None:
        """What `read` returns; if a file is damaged, or of another version, None and the reason as `error`."""
        try:
            return read()
        except Exception as error:  # whatever such a file holds
            self.error = str(error) or type(error).__name__
            return None

    def cached(self, names: tuple[str, ...], read: Callable[[Path], T]) -> T:
        """What `read` returns for the first of the run's files; called again when one of them has changed."""
        files = [self.folder / name for name in names]
        now, kept = [_stamp(file) for file in files], self._kept.get(names[0])
        if kept is None or kept[0] != now:
            kept = self._kept[names[0]] = (now, read(files[0]))
        return kept[1]

    def _read(self) -> None:
        self.recipe = self.cached(("recipe.yaml",), lambda file: read_recipe(str(file)) if file.is_file() else None)
        self.status = self.cached(("status.json",), read_json) or {}
        result = self.cached(("result.json",), read_json) or {}
        self.result = {name: value for name, value in result.items() if isinstance(value, int | float)}
        self.facts = dict(reproducibility.environment_rows(self.cached(("environment.json",), read_json) or {}))
        found = self.cached(("eval-test.json",), lambda file: evaluation_summary.read_metrics(file.parent, "test"))
        self.test = evaluation_summary.accuracy_text(found) if found and result else ""
        attempts = self.cached(("attempts.json",), lambda file: reproducibility.read_attempts(file.parent))
        self.attempts = list(zip(attempts, reproducibility.attempt_rows(attempts, self.status), strict=True))
        if self._read_rows() or self.curves is None:
            self.lines = _lines(self._rows)
        self.curves = self.recipe and curves.from_rows(self._rows, self.recipe, attempts)
        per_epoch = self.curves.steps_per_epoch if self.curves else math.inf
        self.stops = [
            Stop(step, step / per_epoch, _stop_text(step, attempt)) for step, attempt in curves.interruptions(attempts)
        ]

    def _read_rows(self) -> bool:
        """Adds the new rows; whether there are any. A resumed run replaces the file, without rows of lost updates.

        The new file may have the inode of one before it, but not its last line: rows hold measured times.
        """
        try:
            stream = (self.folder / "metrics.jsonl").open("rb")
        except FileNotFoundError:
            self._inode, self._read_to, self._last, self._rows = 0, 0, b"", []
            return True
        with stream:
            inode, size, _ = _stamp(stream.fileno())
            is_another = inode != self._inode or size < self._read_to
            if not is_another:
                stream.seek(self._read_to - len(self._last))
                is_another = stream.read(len(self._last)) != self._last
            if is_another:
                self._inode, self._read_to, self._last, self._rows = inode, 0, b"", []
            stream.seek(self._read_to)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]  # the last line may be half written
        self._read_to += len(whole)
        self._last = whole[whole[:-1].rfind(b"\n") + 1 :] or self._last
        numbers = (
            {name: value for name, value in row.items() if isinstance(value, int | float)}
            for row in curves.parse_rows(whole)
        )
        self._rows = [*self._rows, *(row for row in numbers if row.keys() >= {"step", "epoch"})]
        return is_another or bool(whole)

    def _seen(self) -> tuple[Any, ...]:
        stamps = {name: stamp for name, (stamp, _) in self._kept.items()}
        return self.listed, self.error, self._inode, self._read_to, self._last, stamps


def _lines(rows: list[dict[str, float]]) -> dict[str, Line]:
    """The points of each field of the rows, at most 400; a value that is not finite has none."""
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "epoch", "images"))
    found = {}
    for name in names:
        kept = [row for row in rows if math.isfinite(row.get(name, math.nan))]
        size = max(1, -(-len(kept) // _POINTS))
        groups = (kept[start : start + size] for start in range(0, len(kept), size))
        found[name] = [(g[-1]["step"], g[-1]["epoch"], sum(row[name] for row in g) / len(g)) for g in groups]
    return found


def _stop_text(step: int, attempt: dict[str, Any]) -> str:
    """`interrupted at step 14 (SIGTERM), resumed from step 14`; at which step a process was killed, nobody knows."""
    state, why = attempt.get("state", "ended"), f" ({attempt['why']})" if attempt.get("why") else ""
    at = f" at step {attempt['step']:,}" if state != "killed" and "step" in attempt else ""
    return f"{state}{at}{why}, resumed from step {step:,}"


def _stamp(file: Path | int) -> Stamp:
    """Changes when the file does: its inode, size and time of change. None without a file."""
    try:
        facts = os.stat(file)  # noqa: PTH116 (also of an open file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns

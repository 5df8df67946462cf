"""The interface of a tracker, which shows the rows of a run as curves."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.config.schema import Recipe

UPLOAD_SECONDS = 240.0  # for the model, at the end; torchrun on other nodes waits 300 s for the last process


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker is opened for.

    `path`: the run directory. `warn`: receives messages for the user. `identity`: the one kept in the
    checkpoint, if any. `nodes`: how many machines train it.
    """

    recipe: Recipe
    path: Path
    environment: dict[str, Any]
    warn: Callable[[str], None]
    identity: str | None
    nodes: int = 1


class Tracker(ABC):
    """Base class of the trackers in `config.schema.TRACKERS`.

    It is constructed in the main thread of rank 0 and then used from one other thread; a call may raise or hang without
    affecting training. `package`: the Python package that it needs. `identity`: kept in checkpoints, so that a resumed
    run continues the same curves. `named_run`: NAME=VALUE of the variable that names the run of a new run directory,
    which may have rows already. `commands`: (what, command) to view the curves. `recovery_hint`: what the user can do
    after the tracker failed, appended to the warning. `upload_seconds`: how long the end of a finished run may wait for
    large files, in addition to what all trackers have. `for_nodes`: what `on_node` needs; None where further
    nodes have nothing to add.
    """

    package: str | None = None
    identity: str | None = None
    named_run = ""
    commands: tuple[tuple[str, str], ...] = ()
    recovery_hint = ""
    upload_seconds = 0.0
    for_nodes: dict[str, str] | None = None

    @classmethod
    def on_node(cls, facts: dict[str, str], node: int) -> Tracker:
        """What the first process of a further node opens; `facts` are the `for_nodes` of rank 0's tracker."""
        raise NotImplementedError

    @classmethod  # noqa: B027 (optional)
    def check(cls, recipe: Recipe) -> None:
        """Raises UserError where the tracker's environment variables or fields are invalid. Imports nothing heavy."""

    @abstractmethod
    def __init__(self, run: TrackedRun) -> None:
        """Opens the tracker."""

    def latest(self) -> int:
        """The step of the latest row from earlier attempts, or -1; only later rows are logged."""
        return -1

    @abstractmethod
    def log(self, row: dict[str, Any]) -> None:
        """Logs a row of metrics.jsonl."""

    @abstractmethod
    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Logs the final results after `step` updates: numbers, PNG files by name, and files to keep with them."""

    @abstractmethod
    def finish(self, state: str) -> None:
        """Ends the run as `finished`, `interrupted`, `stopped` (by a sweep), `failed` or `lost`."""

    def abandon(self) -> None:  # noqa: B027 (optional)
        """Drops whatever hangs or is broken immediately, so that the process can exit."""


def kept_identity(file: Path) -> str | None:
    """The id of a tracker's run, as an earlier attempt has kept it; an empty file was cut off by a kill."""
    return (file.read_text().strip() or None) if file.is_file() else None


def keep_identity(file: Path, identity: str) -> None:
    """Keeps the id of a tracker's run, so that further attempts continue it."""
    if identity != kept_identity(file):
        with atomic_write(file) as aside:
            aside.write_text(identity)


def kept_rows(run: Path, after: int, until: int) -> Iterator[dict[str, Any]]:
    """Yields the rows of RUN/metrics.jsonl with `after` < step <= `until`, while the file may still grow."""
    with (run / "metrics.jsonl").open() as lines:
        for row in map(json.loads, lines):
            if after < row["step"] <= until:
                yield row
            if row["step"] >= until:  # the next line may be incomplete
                return

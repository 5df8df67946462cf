"""One file a tracker: where a run's rows are drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Tracker:
    """What a tracker is asked; all but `log`, `summary` and `finish` may be left as it is.

    It is opened by rank 0's main thread and then used by one thread of its own: a call may raise or hang, and training
    goes on. `commands` tells the user how to see the curves: (what, command), and `rest`, if anything, what can be done
    with those of a tracker that broke off. `identity` is kept in checkpoints, so that whoever takes one up continues
    the same curves.
    """

    identity: str | None = None
    commands: tuple[tuple[str, str], ...] = ()
    rest = ""

    def latest(self) -> int:
        """The step of the newest row that it has from earlier starts; it is given those that come after."""
        return 0

    def log(self, row: dict[str, Any]) -> None:
        """Adds a row of metrics.jsonl."""
        raise NotImplementedError

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """What the run has come to after `step` updates: numbers, PNG files by name, and files to keep with them."""
        raise NotImplementedError

    def finish(self, state: str) -> None:
        """Ends the run as `finished`, `interrupted`, `failed` or `lost`."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Lets go of what hangs or is broken, at once, so that the process can end."""


def kept_rows(run: Path, after: int, until: int) -> Iterator[dict[str, Any]]:
    """The rows of RUN/metrics.jsonl with `after` < step <= `until`, while it may grow."""
    with (run / "metrics.jsonl").open() as lines:
        for row in map(json.loads, lines):
            if after < row["step"] <= until:
                yield row
            if row["step"] >= until:  # the next line may be half written
                return

"""The trackers of a run, each in its own thread so that none of them delays training.

Rank 0 has those of the recipe; the first process of a further node has those that show its machine beside them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pkgutil
import queue
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from resnet_cifar.config import schema
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.tracking import notify
from resnet_cifar.tracking.base import TrackedRun, Tracker, kept_rows

_NOTIFY = "track.notify"
_SHOWN = 200  # characters of a tracker's error
_MAX_QUEUED = 10_000  # calls waiting for a tracker that hangs
_FINISH_TIMEOUT = 12.0  # seconds for all trackers together: less than the 15 that an interrupted run allows

Call = Callable[[Tracker], None]


class MultiTracker:
    """Several trackers side by side. One that fails is disabled with a warning; one that hangs is abandoned at the end.

    After a resume each one first receives the rows of metrics.jsonl that it lacks.
    """

    def __init__(self, trackers: dict[str, Tracker], run: Path, step: int, warn: Callable[[str], None]) -> None:
        self._workers = [_Worker(name, tracker, run, step, warn) for name, tracker in trackers.items()]
        self.commands = [command for tracker in trackers.values() for command in tracker.commands]
        self.identity = next((tracker.identity for tracker in trackers.values() if tracker.identity), None)
        self.for_nodes = {name: tracker.for_nodes for name, tracker in trackers.items() if tracker.for_nodes}

    def __bool__(self) -> bool:
        return bool(self._workers)

    def log(self, row: dict[str, Any]) -> None:
        """Queues a row of metrics.jsonl without waiting."""
        for worker in self._workers:
            worker.submit(partial(worker.log, row=row))

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Queues the final results: see `Tracker.summary`."""
        for worker in self._workers:
            worker.submit(lambda tracker: tracker.summary(step, values, figures, files))

    def finish(self, state: str) -> None:
        """Ends the run, within a bounded time: see `Tracker.finish`."""
        start = time.monotonic()
        for worker in self._workers:
            worker.submit(lambda tracker: tracker.finish(state))
            worker.submit(None)
        for worker in self._workers:
            worker.wait(start, with_uploads=state == "finished")


class _Worker:
    """One tracker's queue and thread."""

    def __init__(self, name: str, tracker: Tracker, run: Path, step: int, warn: Callable[[str], None]) -> None:
        self._name, self._tracker, self._run, self._warn = name, tracker, run, warn
        self._latest = -1
        self._disabled = threading.Event()
        self._calls: queue.Queue[Call | None] = queue.Queue(_MAX_QUEUED)
        self._thread = threading.Thread(target=self._serve, args=(step,), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, tracker: Tracker, row: dict[str, Any]) -> None:
        """Skips a row that an earlier attempt has already logged."""
        if row["step"] > self._latest:
            tracker.log(row)

    def submit(self, call: Call | None) -> None:
        if self._disabled.is_set():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._disable(f"{_MAX_QUEUED} calls are waiting")

    def wait(self, start: float, with_uploads: bool) -> None:
        seconds = _FINISH_TIMEOUT + (self._tracker.upload_seconds if with_uploads else 0.0)
        self._thread.join(max(0.0, start + seconds - time.monotonic()))
        if self._thread.is_alive():
            self._disable(f"it did not finish within {seconds:g} s")
            with contextlib.suppress(Exception, SystemExit):
                self._tracker.abandon()

    def _serve(self, step: int) -> None:
        try:
            self._latest = self._tracker.latest()
            if self._tracker.named_run and self._latest >= 0:
                has = f"{self._tracker.named_run} has rows up to step {self._latest}"
                self._warn(f"{_field(self._name)}: {has}, which it keeps: this run adds later ones only")
            if step > self._latest:
                for row in kept_rows(self._run, self._latest, step):
                    self._tracker.log(row)
            while call := self._calls.get():
                call(self._tracker)
                if self._disabled.is_set():
                    return
        except (Exception, SystemExit) as error:  # W&B raises SystemExit when its core process has died
            self._disable(_reason(error))
            with contextlib.suppress(Exception, SystemExit):
                self._tracker.abandon()

    def _disable(self, why: str) -> None:
        if not self._disabled.is_set():
            self._disabled.set()
            hint = self._tracker.recovery_hint
            self._warn(f"{_field(self._name)} is disabled from here on ({why}): every row is in metrics.jsonl{hint}")


def _tracker_classes(recipe: Recipe) -> dict[str, type[Tracker]]:
    """Name -> class of each tracker in `track.trackers`, as registered in `config.schema.TRACKERS`; a notifier."""
    names = [name for name in recipe.track.trackers.split(",") if name != "none"]
    found = {name: pkgutil.resolve_name(schema.TRACKERS[name]) for name in names}
    # W&B's alerts are sent by its own tracker.
    return found | ({_NOTIFY: notify.Notifier} if recipe.track.notify not in ("", "wandb") else {})


def _field(name: str) -> str:
    """The field that has asked for a tracker, for messages."""
    return name if name == _NOTIFY else f"track.trackers {name}"


def _reason(error: BaseException) -> str:
    """The first line of what it says, without passwords of URLs: SQLAlchemy adds the query, others a traceback."""
    said = next(iter(str(error).splitlines()), type(error).__name__)
    return re.sub(r"//[^/@\s]+@", "//", said)[:_SHOWN]


def check_trackers(recipe: Recipe) -> None:
    """Raises UserError if the package of a tracker is not installed, or its environment variables are invalid."""
    classes = _tracker_classes(recipe)
    if os.environ.get("WANDB_SWEEP_ID") and "wandb" not in classes:
        raise UserError(
            f"track.trackers {recipe.track.trackers!r} sends no metric to the W&B sweep of this trial (WANDB_SWEEP_ID="
            f"{os.environ['WANDB_SWEEP_ID']}): add wandb, or unset WANDB_SWEEP_ID"
        )
    notify.check(recipe.track.notify)
    for name, tracker in classes.items():
        if tracker.package and importlib.util.find_spec(tracker.package) is None:
            raise UserError(
                f"track.trackers {name!r} needs the package {tracker.package}: pip install -e '.[trackers]'"
            )
        tracker.check(recipe)


def start_trackers(
    recipe: Recipe,
    run: Path,
    environment: dict[str, Any],
    warn: Callable[[str], None],
    identity: str | None = None,
    step: int = -1,
    nodes: int = 1,
) -> MultiTracker:
    """Opens the trackers in `track.trackers`, which continue after the row of update `step` in metrics.jsonl, or -1.

    `identity`: the one kept in the checkpoint, if any. `warn`: receives messages for the user. `nodes`: how many
    machines train the run. Raises UserError.
    """
    opened_for = TrackedRun(recipe, run, environment, warn, identity, nodes)
    trackers = {}
    for name, tracker in _tracker_classes(recipe).items():
        try:
            trackers[name] = tracker(opened_for)
        except UserError:
            MultiTracker(trackers, run, -1, warn).finish("failed")  # those that are open: nobody else would end them
            raise
        except Exception as error:
            warn(f"{_field(name)} is disabled ({_reason(error)}): every row is in metrics.jsonl")
    return MultiTracker(trackers, run, step, warn)


def start_node_trackers(recipe: Recipe, run: Path, for_nodes: dict[str, dict[str, str]], node: int) -> MultiTracker:
    """Opens what shows a further node's machine. `for_nodes`: of rank 0's trackers. Nobody is told if it fails."""
    classes = _tracker_classes(recipe)
    trackers = {name: classes[name].on_node(facts, node) for name, facts in for_nodes.items()}
    return MultiTracker(trackers, run, -1, lambda _: None)

"""A run's trackers: each in a thread of its own, so that none keeps the run from training. Only rank 0 has any."""

from __future__ import annotations

import contextlib
import importlib.util
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.tracking.base import Tracker, kept_rows

_WAITING = 10_000  # calls that a tracker which hangs may leave undone
_PARTING = 12.0  # seconds for all trackers to end: less than the 15 that a run which was asked to stop gives them

Call = Callable[[Tracker], None]


class MultiTracker:
    """Trackers side by side. What one of them raises is said once and drops it; what hangs is waited for at the end.

    They go on where an earlier start stopped, each with the rows of metrics.jsonl that it lacks.
    """

    def __init__(self, trackers: dict[str, Tracker], run: Path, step: int, warn: Callable[[str], None]) -> None:
        self._lanes = [_Lane(name, tracker, run, step, warn) for name, tracker in trackers.items()]
        self.commands = [command for tracker in trackers.values() for command in tracker.commands]
        self.identity = next((tracker.identity for tracker in trackers.values() if tracker.identity), None)

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def log(self, row: dict[str, Any]) -> None:
        """Hands on a row of metrics.jsonl, without waiting."""
        for lane in self._lanes:
            lane.hand(partial(lane.log, row=row))

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Hands on what the run has come to: see `Tracker.summary`."""
        for lane in self._lanes:
            lane.hand(lambda tracker: tracker.summary(step, values, figures, files))

    def finish(self, state: str) -> None:
        """Ends the run as `finished`, `interrupted`, `failed` or `lost`, within a bounded time."""
        end = time.monotonic() + _PARTING
        for lane in self._lanes:
            lane.hand(lambda tracker: tracker.finish(state))
            lane.close()
        for lane in self._lanes:
            lane.wait(end)


class _Lane:
    """One tracker's queue and thread."""

    def __init__(self, name: str, tracker: Tracker, run: Path, step: int, warn: Callable[[str], None]) -> None:
        self._name, self._tracker, self._run, self._warn = name, tracker, run, warn
        self._latest = 0
        self._lost = threading.Event()
        self._calls: queue.Queue[Call | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._serve, args=(step,), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, tracker: Tracker, row: dict[str, Any]) -> None:
        """A row that an earlier start has handed over already, and this one has come to again, is left out."""
        if row["step"] > self._latest:
            tracker.log(row)

    def hand(self, call: Call | None) -> None:
        if self._lost.is_set():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._lose(f"{_WAITING} calls wait for it")

    def close(self) -> None:
        self.hand(None)

    def wait(self, end: float) -> None:
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._lose(f"it does not end within {_PARTING:g} s")
            with contextlib.suppress(Exception, SystemExit):
                self._tracker.abandon()

    def _serve(self, step: int) -> None:
        try:
            self._latest = self._tracker.latest()
            if step > self._latest:
                for row in kept_rows(self._run, self._latest, step):
                    self._tracker.log(row)
            while call := self._calls.get():
                call(self._tracker)
                if self._lost.is_set():
                    return
        except (Exception, SystemExit) as error:  # W&B ends the program where its core has died
            self._lose(str(error) or type(error).__name__)
            with contextlib.suppress(Exception, SystemExit):
                self._tracker.abandon()

    def _lose(self, why: str) -> None:
        if not self._lost.is_set():
            self._lost.set()
            rest = self._tracker.rest
            self._warn(
                f"track.trackers {self._name} is left out from here on ({why}): every row is in metrics.jsonl{rest}"
            )


def tracker_names(recipe: Recipe) -> list[str]:
    """What `track.trackers` names; nothing for `none`."""
    return [name for name in recipe.track.trackers.split(",") if name != "none"]


def check_trackers(recipe: Recipe) -> None:
    """Raises UserError where a tracker's package is not installed."""
    for name in tracker_names(recipe):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"track.trackers {name!r} needs the package {name}: pip install -e '.[trackers]'")


def start_trackers(
    recipe: Recipe,
    run: Path,
    environment: dict[str, Any],
    warn: Callable[[str], None],
    identity: str | None = None,
    step: int = 0,
) -> MultiTracker:
    """The trackers that `track.trackers` names, going on as `identity` after the rows up to `step` that metrics.jsonl has.

    `warn` hears what the user should know. Raises UserError.
    """
    trackers = {}
    for name in tracker_names(recipe):
        try:
            trackers[name] = _open(name, recipe, run, environment, warn, identity)
        except UserError:
            raise
        except Exception as error:
            warn(
                f"track.trackers {name} is left out ({str(error) or type(error).__name__}): every row is in metrics.jsonl"
            )
    return MultiTracker(trackers, run, step, warn)


def _open(
    name: str, recipe: Recipe, run: Path, environment: dict[str, Any], warn: Callable[[str], None], identity: str | None
) -> Tracker:
    if name == "wandb":
        from resnet_cifar.tracking.wandb import Wandb

        return Wandb(recipe, run, environment, warn, identity)
    if name == "trackio":
        from resnet_cifar.tracking.trackio import Trackio

        return Trackio(recipe, run, environment)
    from resnet_cifar.tracking.tensorboard import TensorBoard

    return TensorBoard(recipe, run, environment)

"""What a run leaves behind while it trains: rows, checkpoints, status, curves. Rank 0 writes, others are silent."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any

from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.checkpoints.snapshot import Snapshot
from resnet_cifar.config.diff import to_dict
from resnet_cifar.config.errors import UserError
from resnet_cifar.data.image_data import ImageData
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.distributed.watchdog import RESUME_HINT
from resnet_cifar.reporting import environment
from resnet_cifar.reporting.console import Screen
from resnet_cifar.tracking.multi import MultiTracker, start_trackers
from resnet_cifar.training import telemetry
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.timings import Timings


class RunWriter:
    """One start's part of a run folder, and its tracker and screen."""

    def __init__(
        self, plan: Plan, context: DistributedContext, data: ImageData, folder: RunDir, screen: Screen, timings: Timings
    ) -> None:
        self.plan, self.context, self.data = plan, context, data
        self.folder, self.screen, self.timings = folder, screen, timings
        self.tracker = MultiTracker({}, folder.path, 0, screen.warn)
        self.done, self.seconds_to_first_step = 0, 0.0  # what status.json says beside the state
        self.energy_kwh: float | None = None  # that this start has used, where it is known
        self.saved = 0  # updates that the newest checkpoint has seen; rank 0's
        self._writer = checkpoint.Writer(folder.checkpoints, plan.recipe.checkpoint.keep_last, before=folder.sync)
        self._saved_at = time.monotonic()
        self._ending, self._has_ended = threading.Lock(), False

    def open(self) -> tuple[Snapshot | None, dict[str, Any] | None]:
        """Claims the folder and finds the newest checkpoint in it: its tensors on rank 0, its state on every rank.

        (None, None) where there is none. Raises UserError where the folder cannot be written or the images have changed.
        """
        recipe, tensors = self.plan.recipe, None

        def look() -> str:
            nonlocal tensors
            facts = {**environment.describe(), "world_size": self.context.size, "data": self.data.fingerprint}
            if before := read_json(self.folder.path / "environment.json"):
                self._check_data(before["data"])  # a start that is refused leaves the folder as it was
            self.folder.acquire(recipe, facts)
            newest = checkpoint.newest(self.folder.checkpoints, self.screen.warn)
            tensors, state = checkpoint.read(newest) if newest else (None, None)
            if state:
                self.done = self.saved = state["step"]
                self._check_data(state["data"])
                self._check_best(state)
            self.status("running")  # a compilation may come before the first step
            # The row of a score that was cut short is written when that is done.
            step = state["step"] - bool(state["pending_row"]) if state else 0
            self.folder.resume_metrics(step)
            identity = state["tracker"] if state else None
            self.tracker = start_trackers(recipe, self.folder.path, facts, self.screen.warn, identity, step)
            return json.dumps(state)

        state = json.loads(self.context.run_on_main(look))
        return tensors, state

    def row(self, row: dict[str, Any], is_best: bool) -> None:
        """A row of metrics.jsonl. Raises UserError where the checkpoint before it could not be written."""
        if not self.context.is_main:
            return
        self._writer.check()
        self.folder.append_metrics(row)
        self.tracker.log(row)
        self.screen.row(row)
        if "val/accuracy" in row:
            self.screen.score(row, is_best)

    def summary(self, values: dict[str, float], with_figures: bool) -> None:
        """Final numbers for the trackers and, if the report was written, what is confused, in two of its figures."""
        run, names = self.folder.path, ("confusion", "mistakes") if with_figures else ()
        drawn = {name: run / "report" / "figures" / f"{name}.png" for name in names}
        kept = ("recipe.yaml", "eval-test.json", "predictions-test.parquet", "model/config.json")
        self.tracker.summary(self.done, values, drawn, [run / name for name in kept])

    def is_time_to_save(self) -> bool:
        """Whether rank 0, which alone saves, last did so checkpoint.every_minutes ago."""
        minutes = self.plan.recipe.checkpoint.every_minutes
        return self.context.is_main and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, snapshot: Snapshot, state: dict[str, Any]) -> None:
        """Begins to write the checkpoint of `done` updates, in the background."""
        self._saved_at = time.monotonic()
        facts = {
            "tracker": self.tracker.identity,
            "recipe": to_dict(self.plan.recipe),
            "data": self.data.fingerprint,
            "classes": list(self.data.classes),
            "decode_size": self.data.train.side,
        }
        best = state["best"]["step"] if state["best"] else None
        self._writer.write(self.done, snapshot, {**state, **facts}, best)
        self.saved = self.done

    def wait(self) -> None:
        """Returns when the last checkpoint is on disk. Raises UserError where it could not be written."""
        self._writer.wait()

    def status(self, state: str, **facts: Any) -> None:
        """Writes status.json."""
        if self.context.is_main:
            seconds = round(self.seconds_to_first_step, 2)
            if self.context.device.type == "cuda":
                facts |= {"gpus": self.context.size}
            if self.energy_kwh is not None:
                facts |= {"energy_kwh": self.energy_kwh}
            self.folder.status(state, step=self.done, steps=self.plan.steps, seconds_to_first_step=seconds, **facts)

    def costs(self) -> dict[str, float]:
        """What the run has cost on GPUs in all its starts: see `telemetry.costs`. Rank 0's."""
        *earlier, this = self.folder.attempts
        return telemetry.costs([*earlier, {**this, "ended": time.time(), "energy_kwh": self.energy_kwh}])

    def report_timings(self) -> None:
        """Adds `seconds_by_part` to the status of a finished run, which stays finished where that cannot be written."""
        with contextlib.suppress(UserError, OSError):
            self.status("finished", seconds_by_part=self.timings.seconds())

    def end(self, state: str, why: str) -> None:
        """Leaves a last word in the folder and with the tracker; what ends the run already is not hidden by another."""
        with self._ending:
            if self._has_ended:
                return
            self._has_ended = True
        self.screen.end()
        if self.context.is_main and state != "finished" and self.folder.lease:
            with contextlib.suppress(UserError, OSError):
                self.status(state, why=why)
        with contextlib.suppress(Exception):
            self.tracker.finish(state)

    def leave(self, state: str, why: str) -> None:
        """The same from the watch's thread, before the process ends without its main thread."""
        if state == "interrupted":
            self.done = self.saved
        self.end(state, why)
        if state == "interrupted":
            self.screen.say(f"interrupted by {why} at step {self.done}, with nothing new to save: {RESUME_HINT}")

    def _check_best(self, state: dict[str, Any]) -> None:
        """Forgets a best checkpoint that is no longer whole: the best from here on counts."""
        if state["best"] and state["best"]["step"] != state["step"]:
            try:
                checkpoint.read_state(self.folder.checkpoints / checkpoint.name(state["best"]["step"]))
            except checkpoint.Damage as damage:
                self.screen.warn(f"{damage}: it was the best so far, and the best from here on counts instead")
                state["best"] = None

    def _check_data(self, fingerprint: str) -> None:
        if fingerprint != self.data.fingerprint:
            raise UserError(
                f"data.source {self.plan.recipe.data.source!r} is not what this run was trained on (its fingerprint is "
                f"{self.data.fingerprint}, not {fingerprint}): bring the images back, or start over with --restart"
            )

"""What a run writes while it trains: metrics, checkpoints, status, trackers and console. Only rank 0 writes.

Between the first step and the last the main thread touches no file of the run directory: one thread writes rows and
states, in order, and another one checkpoints, each after the rows that precede it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from resnet_cifar import wandb_env
from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints import checkpoint
from resnet_cifar.checkpoints.background import Background
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.checkpoints.snapshot import Snapshot
from resnet_cifar.config.diff import to_dict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.rerun import how_to_resume
from resnet_cifar.config.schema import selection_key
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.data.sources import hf_hub
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.reporting import environment
from resnet_cifar.reporting.console import Screen
from resnet_cifar.tracking.base import kept_rows
from resnet_cifar.tracking.multi import MultiTracker, start_node_trackers, start_trackers
from resnet_cifar.training import telemetry
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.timings import Timings

# Of the run directory, for trackers that store files: the result, and what `resnet-cifar reproduce` needs.
_KEPT_FILES = (
    *("recipe.yaml", "environment.json", "code.diff", "micro_batch.json", "attempts.json", "metrics.jsonl"),
    *("result.json", "eval-test.json", "predictions-test.parquet", "model/config.json"),
)
_NODES = 6.0  # seconds that rank 0's trackers wait for the end of those of other nodes, which takes up to 5


class RunWriter:
    """Writes one attempt's part of the run directory, and its trackers and console output."""

    def __init__(
        self, plan: Plan, context: DistributedContext, data: ImageData, folder: RunDir, screen: Screen, timings: Timings
    ) -> None:
        self.plan, self.context, self.data = plan, context, data
        self.folder, self.screen, self.timings = folder, screen, timings
        self.tracker = MultiTracker({}, folder.path, 0, screen.warn)
        self.done, self.seconds_to_first_step = 0, 0.0  # also written to status.json
        self.energy_kwh: float | None = None  # used by this attempt, if known
        self.saved = 0  # the step of the latest checkpoint; on rank 0
        self._files = Background("run directory")
        keep = plan.recipe.checkpoint.keep_last
        self._writer = checkpoint.Writer(folder.checkpoints, keep, before=self._sync_rows)
        self._saved_at = time.monotonic()
        self.is_stopped = False  # by the sweep that this run is a trial of; on rank 0
        self._for_nodes: dict[str, dict[str, str]] = {}
        self._ending, self._has_ended = threading.Lock(), False

    def open(self) -> tuple[Snapshot | None, dict[str, Any] | None]:
        """Acquires the run directory and reads its latest checkpoint: tensors on rank 0, plain values on every rank.

        (None, None) without a checkpoint. Raises UserError where the directory cannot be written or the images changed.
        """
        recipe, tensors = self.plan.recipe, None

        def look() -> str:
            nonlocal tensors
            facts = {**environment.describe(), "world_size": self.context.size, "data": self.data.fingerprint}
            facts["data_commit"] = hf_hub.commit_of(recipe.data)
            if before := read_json(self.folder.path / "environment.json"):
                self._check_data(before["data"])  # before anything is changed
            counts = self.data.class_counts()
            self.folder.acquire(recipe, {**facts, "class_counts": counts}, environment.code_diff())
            newest = checkpoint.newest(self.folder.checkpoints, self.screen.warn)
            tensors, state = checkpoint.read(newest) if newest else (None, None)
            if state:
                self.done = self.saved = state["step"]
                self._check_data(state["data"])
            self.status("running")  # compilation may precede the first step
            self._files.wait()
            # The row of an unfinished evaluation is written when that is repeated, be it the one before all updates.
            step = state["step"] - bool(state["pending_row"]) if state else -1
            self.folder.resume_metrics(step)
            if state:
                self._check_best(state)
            identity = state["tracker"] if state else None
            nodes = self.context.nodes
            self.tracker = start_trackers(recipe, self.folder.path, facts, self.screen.warn, identity, step, nodes)
            return json.dumps([state, self.tracker.for_nodes])

        state, self._for_nodes = json.loads(self.context.run_on_main(look))
        if self._for_nodes and self.context.is_first_on_node and not self.context.is_main:
            self.tracker = start_node_trackers(recipe, self.folder.path, self._for_nodes, self.context.node)
        return tensors, state

    def row(self, row: dict[str, Any], is_best: bool) -> None:
        """Writes a row of metrics.jsonl, in the background. Raises UserError or OSError where something given earlier
        could not be written: a checkpoint, a row or the status."""
        if not self.context.is_main:
            return
        self._writer.check()
        self._write(partial(self.folder.append_metrics, row))
        self.tracker.log(row)
        if "train/loss" in row:  # not in that of step 0
            self.screen.row(row)
        if "val/accuracy" in row:
            self.screen.score(row, is_best, self.plan.recipe.evaluate.select_by)

    def summary(self, values: dict[str, float], with_figures: bool) -> None:
        """Sends the final numbers to the trackers and, if the report was written, two of its figures."""
        run, names = self.folder.path, ("confusion", "mistakes") if with_figures else ()
        drawn = {name: run / "report" / "figures" / f"{name}.png" for name in names}
        files = [file for name in _KEPT_FILES if (file := run / name).is_file()]
        self.tracker.summary(self.done, values, drawn, files)

    def is_time_to_save(self) -> bool:
        """Whether the last checkpoint is checkpoint.every_minutes old; only on rank 0, which saves."""
        minutes = self.plan.recipe.checkpoint.every_minutes
        return self.context.is_main and minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def save(self, snapshot: Snapshot, state: dict[str, Any]) -> None:
        """Starts writing the checkpoint of `done` updates in the background."""
        self._saved_at = time.monotonic()
        facts = {
            "tracker": self.tracker.identity,
            "recipe": to_dict(self.plan.recipe),
            "data": self.data.fingerprint,
            "classes": list(self.data.classes),
            "decoding": dataclasses.asdict(self.data.decoding),
        }
        best = state["best"]["step"] if state["best"] else None
        self._writer.write(self.done, snapshot, {**state, **facts}, best)
        self.saved = self.done

    def wait(self) -> None:
        """Waits until rows, states and checkpoints are written. Raises UserError or OSError where one could not be."""
        self._writer.wait()
        self._files.wait()

    def _sync_rows(self) -> None:
        """Flushes all rows to disk: a checkpoint must not outlive its rows."""
        self._files.wait()
        self.folder.sync()

    def status(self, state: str, **facts: Any) -> None:
        """Writes status.json, in the background."""
        if self.context.is_main:
            self._write(partial(self.folder.status, state, **self._facts(), **facts))

    def _write(self, work: Callable[[], None]) -> None:
        """Does `work` in the background; nothing after the final state.

        The watchdog's thread may end the run at any moment, and the main thread goes on until the process has ended.
        """
        with self._ending:
            if not self._has_ended:
                self._files.do(work)

    def _facts(self) -> dict[str, Any]:
        """What status.json says besides the state."""
        facts = {"step": self.done, "steps": self.plan.steps}
        facts |= {"seconds_to_first_step": round(self.seconds_to_first_step, 2)}
        if self.context.device.type == "cuda":
            facts |= {"gpus": self.context.size}
        return facts if self.energy_kwh is None else {**facts, "energy_kwh": self.energy_kwh}

    def costs(self) -> dict[str, float]:
        """The cost of all attempts: see `telemetry.costs`. On rank 0."""
        *earlier, this = self.folder.attempts
        return telemetry.costs([*earlier, {**this, "ended": time.time(), "energy_kwh": self.energy_kwh}])

    def report_timings(self) -> None:
        """Adds `seconds_by_part` to the status of a finished run, if it can be written."""
        with contextlib.suppress(UserError, OSError):
            self.status("finished", seconds_by_part=self.timings.seconds())
            self._files.wait()

    def end_nodes(self, state: str) -> None:
        """Ends the trackers of further nodes before those of rank 0: what they send later could reopen the run."""
        if self._for_nodes and self.context.is_first_on_node:
            if not self.context.is_main:
                self.tracker.finish(state)
            self.context.wait_for_nodes("the end of node trackers", _NODES)

    def end(self, state: str, why: str, **facts: Any) -> None:
        """Writes the final state to the run directory and the trackers; never hides the error that ends the run.

        `facts` are added to status.json.
        """
        with self._ending:
            if self._has_ended:
                return
            self._has_ended = True
        self.screen.end()
        if state == "interrupted" and self.context.is_main and wandb_env.is_stopped():
            self.is_stopped, state = True, "stopped"
        if self.context.is_main and state != "finished" and self.folder.lease:
            self._files.settle()
            with contextlib.suppress(UserError, OSError):
                self.folder.status(state, **self._facts(), why=why, **facts)
        with contextlib.suppress(Exception):
            self.tracker.finish(state)

    def leave(self, state: str, why: str, **facts: Any) -> None:
        """The same, called from the watchdog's thread before it ends the process."""
        if state == "interrupted":
            self.done = self.saved
        self.end(state, why, **facts)
        if state == "interrupted":
            self.say_interrupted(why, "with nothing new to save")

    def say_interrupted(self, why: str, how: str = "and saved") -> None:
        """Prints where the run was interrupted, and what the same command does: there may be no checkpoint yet."""
        resumes = "to start again" if not self.saved else f"to resume from step {self.saved}"
        at = f"at step {self.done}, {how}" if self.saved else "before the first checkpoint"
        if self.is_stopped:
            self.screen.say(f"stopped by the W&B sweep {at}")
            return
        self.screen.say(f"interrupted by {why} {at}: {how_to_resume()} {resumes}")

    def _check_best(self, state: dict[str, Any]) -> None:
        """Replaces the best checkpoint if it is damaged: by the best of those that are left, by their rows' scores."""
        if not state["best"] or state["best"]["step"] == state["step"]:
            return
        folder, select_by = self.folder.checkpoints, self.plan.recipe.evaluate.select_by
        try:
            checkpoint.read_state(folder / checkpoint.name(state["best"]["step"]))
            return
        except checkpoint.Damage as damage:
            damaged = damage
        left, steps = [], checkpoint.steps(folder)
        for row in kept_rows(self.folder.path, -1, state["step"]):
            if "val/accuracy" in row and row["step"] in steps:
                with contextlib.suppress(checkpoint.Damage):
                    checkpoint.read_state(folder / checkpoint.name(row["step"]))
                    left.append({name: row[name] for name in row if name == "step" or name.startswith("val/")})
        state["best"] = max(left, key=lambda scores: selection_key(scores, select_by), default=None)
        best = f"that of step {state['best']['step']} is the best that is left" if left else "only later ones count"
        self.screen.warn(f"{damaged}: it was the best so far; {best}")

    def _check_data(self, fingerprint: str) -> None:
        if fingerprint != self.data.fingerprint:
            raise UserError(
                f"data.source {self.plan.recipe.data.source!r} is not what this run was trained on (its fingerprint is "
                f"{self.data.fingerprint}, not {fingerprint}): bring the images back, or start over with --restart"
            )

"""The run directory: where each file is, whose run it holds, and how its attempts ended.

recipe.yaml  environment.json  (code.diff)  lease.json  status.json  attempts.json  metrics.jsonl  result.json
(micro_batch.json)  checkpoints/  model/  wandb/  eval-NAME.json  predictions-NAME.parquet  report/
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import read_json, write_json
from resnet_cifar.checkpoints.lease import Lease
from resnet_cifar.checkpoints.metrics_log import MetricsLog
from resnet_cifar.config.diff import differences, fingerprint
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, write_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import extended

EARLIER_FILES = ("owner.json", "starts.json")  # of run directories that an earlier version of this package wrote


def default_run_path(recipe_name: str, recipe: Recipe) -> Path:
    """runs/RECIPE-<fingerprint of the recipe>: the same command finds its run again."""
    return Path("runs") / f"{Path(recipe_name).stem}-{fingerprint(recipe)}"


def with_a_name(path: Path) -> Path:
    """`path`, absolute if it ends in `.` or `..`: other directories are named after the run's."""
    return path if path.name.strip(".") else path.resolve()


def check_version(path: Path) -> None:
    """Raises UserError if an earlier version of this package wrote the run directory `path`."""
    if any((path / name).exists() for name in EARLIER_FILES):
        raise UserError(
            f"{path} was written by an earlier version: use that version, name another directory, or train again with "
            "--restart"
        )


class RunDir:
    """The directory of one run. Only rank 0 writes, and only while its attempt holds the lease."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints, self.model = path / "checkpoints", path / "model"
        self.lease: Lease | None = None
        self.attempts: list[dict[str, Any]] = []
        """As in attempts.json, this one last; known after the first status."""
        self._metrics: MetricsLog | None = None

    def check(self, recipe: Recipe, extends: bool = False) -> None:
        """Raises UserError if the directory holds another recipe's run, or files that are not a run's.

        With `extends` the existing run may lack the recipe's last phases.
        """
        for place in (self.path, *self.path.parents):
            if place.exists() and not place.is_dir():
                raise UserError(f"--run {self.path}: {place} is a file; name a folder")
        ours = self._recipe()
        if ours is None:
            unfinished = ("lease.json", "recipe.yaml.writing-")  # an attempt that has not written its recipe (yet)
            if self.path.is_dir() and not all(path.name.startswith(unfinished) for path in self.path.iterdir()):
                raise UserError(f"--run {self.path} holds files that are no run: name a new or empty folder")
            return
        missing = len(recipe.phases) - len(ours.phases)
        wanted = recipe
        if extends and missing > 0:
            wanted = dataclasses.replace(recipe, phases=recipe.phases[: len(ours.phases)])
            if self.is_out_of_patience(ours):
                patience = ours.early_stopping.patience
                raise UserError(
                    f"--extend-epochs: early_stopping.patience {patience} of the run in {self.path} has run out, so it "
                    f"would stop again at once: start a new run from its weights with --model.init_from {self.path}"
                )
        if self.result() is None:  # images may have moved: those of the checkpoint are compared when it is resumed
            wanted = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, source=ours.data.source))
        if differing := differences(ours, wanted):
            fix = "name another folder, or start over with --restart"
            if missing < 0:
                unextended = dataclasses.replace(ours, phases=ours.phases[: len(recipe.phases)])
                fix = fix if differences(unextended, wanted) else "give the same --extend-epochs again"
            raise UserError(f"--run {self.path} belongs to another recipe ({'; '.join(differing[:6])}): {fix}")

    def is_out_of_patience(self, recipe: Recipe) -> bool:
        """Whether early stopping ends the run at its latest checkpoint, be that its last step, and finished or not."""
        from resnet_cifar.checkpoints import checkpoint  # imports torch

        steps = checkpoint.steps(self.checkpoints)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # a damaged one, which resuming names
            state = json.loads((self.checkpoints / checkpoint.name(steps[-1]) / "state.json").read_text())
            return 0 < recipe.early_stopping.patience <= state["stopping"]["waited"]
        return False

    def is_extending(self, recipe: Recipe, source: str, epochs: float) -> bool:
        """Whether `recipe` is this run's own recipe.yaml (`source`) and ends in the phase that an interrupted
        --extend-epochs has appended there, so that appending it again would make the run longer at every attempt.

        Raises UserError if the run is unfinished otherwise.
        """
        own = self.path / "recipe.yaml"
        if not (epochs and own.is_file() and Path(source).is_file() and own.samefile(source)) or self.result():
            return False
        results = (read_json(file) for file in self.path.glob("result-step-*.json"))
        finished = max(results, key=lambda result: result["steps"], default={}).get("phases", 0)
        if finished == len(recipe.phases):  # killed before the longer recipe was written
            return False
        if not finished or extended(dataclasses.replace(recipe, phases=recipe.phases[:finished]), epochs) != recipe:
            raise UserError(
                f"--extend-epochs {epochs:g}: the run in {self.path} is not finished: remove --extend-epochs to finish "
                "it first"
            )
        return True

    def check_writable(self) -> None:
        """Raises UserError if permissions or mounts do not allow writing."""
        place = next(place for place in (self.path, *self.path.absolute().parents) if place.exists())
        if not os.access(place, os.W_OK):
            raise UserError(f"--run {self.path} cannot be written ({place} is read-only): name another folder")

    def finished(self, recipe: Recipe) -> dict[str, Any] | None:
        """The result if all of the recipe's phases are finished, otherwise None."""
        ours = self._recipe()
        return self.result() if ours is not None and len(ours.phases) == len(recipe.phases) else None

    def result(self) -> dict[str, Any] | None:
        """The content of result.json, or None."""
        return read_json(self.path / "result.json")

    def mark_finished(self, result: dict[str, Any]) -> None:
        """Writes status.json if the run was killed after result.json was written, but before its status was."""
        if (read_json(self.path / "status.json") or {}).get("state") != "finished":
            facts = {"time": time.time(), "step": result["steps"], "steps": result["steps"]}
            with contextlib.suppress(OSError):  # a finished run may be on a read-only disk
                write_json(self.path / "status.json", {"state": "finished", **facts})

    def move_aside(self) -> Path | None:
        """Renames an existing directory to NAME.before-N, so that starting over loses nothing. Returns the new path."""
        if not self.path.exists():
            return None
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.before-{number}")).exists():
            number += 1
        return self.path.rename(aside)

    def acquire(self, recipe: Recipe, environment: dict[str, Any], code_diff: bytes = b"") -> None:
        """Starts a new attempt: acquires the lease and writes the recipe and the environment. Raises UserError.

        `code_diff`: what the code of this attempt adds to its commit, for code.diff.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lease = Lease.acquire(self.path)
            if result := self.result():  # of the run that is extended
                facts = {**result, "phases": len(self._recipe().phases)}
                write_json(self.path / f"result-step-{result['steps']}.json", facts)
                (self.path / "result.json").unlink(missing_ok=True)  # another attempt may just have done so
            write_recipe(recipe, self.path / "recipe.yaml")
            write_json(self.path / "environment.json", environment)
            if code_diff:
                (self.path / "code.diff").write_bytes(code_diff)
            else:
                (self.path / "code.diff").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"--run {self.path} cannot be written ({error.strerror}): name another folder") from None

    def check_lease(self) -> None:
        """Raises UserError if another attempt has taken the directory over."""
        self.lease.check(self.path)

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """A context for writing. Raises UserError if another attempt has taken the directory over, also in place of
        what follows from that in the context: the other one may have moved the files aside."""
        self.check_lease()
        try:
            yield
        except Exception:
            self.check_lease()
            raise

    def status(self, state: str, **facts: Any) -> None:
        """Writes status.json, and attempts.json if the attempt begins or ends.

        `state`: `running`, `finished`, `interrupted`, `stopped` by a sweep, `failed`, or `lost` if another rank is.
        """
        self.check_lease()
        job = {}
        if "SLURM_JOB_ID" in os.environ:  # the batch script asks how its own attempt ended
            job["job"] = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
        status = {"state": state, "time": time.time(), **job, **facts}
        self._record_attempt(status)
        write_json(self.path / "status.json", status)

    def _record_attempt(self, status: dict[str, Any]) -> None:
        """Records in attempts.json how this attempt began or ended; an earlier one without an end was killed."""
        file, step, is_first = self.path / "attempts.json", status.get("step", 0), not self.attempts
        if is_first:
            earlier = (read_json(file) or {}).get("attempts", [])
            if earlier and "state" not in earlier[-1]:
                began, step_then = earlier[-1]["began"], earlier[-1]["from_step"]
                last = read_json(self.path / "status.json") or {}  # of the attempt before that one, if it wrote none
                ended, reached = max(began, last.get("time", began)), last.get("step", step_then)
                earlier[-1] |= {"state": "killed", "ended": ended, "step": reached}
            this = {"attempt": self.lease.attempt, "host": self.lease.host, "pid": self.lease.pid}
            this |= {"gpus": status["gpus"]} if "gpus" in status else {}
            self.attempts = [*earlier, {**this, "began": status["time"], "from_step": step}]
        if status["state"] != "running":
            details = {name: status[name] for name in ("why", "energy_kwh") if status.get(name)}
            self.attempts[-1] |= {"state": status["state"], "ended": status["time"], "step": step, **details}
        elif not is_first:
            return
        write_json(file, {"attempts": self.attempts})

    def resume_metrics(self, step: int) -> None:
        """Opens metrics.jsonl for appending, without the rows after update `step`."""
        self._metrics = MetricsLog(self.path / "metrics.jsonl", step, self.check_lease)

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Appends a row to metrics.jsonl."""
        self._metrics.append(row)

    def sync(self) -> None:
        """Flushes metrics.jsonl to disk, if this attempt still holds the lease."""
        self._metrics.sync()

    def _recipe(self) -> Recipe | None:
        check_version(self.path)
        file = self.path / "recipe.yaml"
        try:
            return read_recipe(str(file)) if file.is_file() else None
        except UserError as error:
            raise UserError(
                f"--run {self.path} holds a recipe that this version cannot read ({error}): name another directory, or "
                "start over with --restart"
            ) from None

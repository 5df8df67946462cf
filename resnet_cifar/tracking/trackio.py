"""trackio: an SQLite database in RUN/trackio and a local dashboard."""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from resnet_cifar import wandb_env
from resnet_cifar.config.diff import flatten
from resnet_cifar.tracking.base import TrackedRun, Tracker

_chosen: list[str] = []  # values of TRACKIO_DIR that are not the user's


class TrackioTracker(Tracker):
    """One project with one run. trackio hides its own errors, so its stored rows are checked at the end."""

    package = "trackio"

    def __init__(self, run: TrackedRun) -> None:
        named = os.environ.get("TRACKIO_DIR")
        named = None if named in _chosen else named
        folder = Path(named or run.path / "trackio").expanduser().resolve()
        if not named:
            _chosen.append(str(folder))
        os.environ["TRACKIO_DIR"] = str(folder)  # read only when trackio is imported
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        if folder != TRACKIO_DIR:
            raise RuntimeError(
                f"this process already uses it with {TRACKIO_DIR}, and it supports one directory per process"
            )
        self._project, self._storage = run.recipe.track.project, SQLiteStorage
        # A renamed run directory continues under its first name; a folder of the user's may hold other runs too.
        self._name = run.path.name if named else next(iter(SQLiteStorage.get_runs(self._project)), run.path.name)
        self._logged = self.latest()
        named_by = wandb_env.group_and_tags()
        group = named_by.pop("group", None)
        config = {**flatten(run.recipe), "environment": run.environment, **named_by}  # it has no tags of its own
        init = partial(trackio.init, self._project, self._name, group, config=config, resume="allow", embed=False)
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = contextvars.copy_context().run(
                init
            )  # outside a copied context it would be finished again at exit
        self._image = trackio.Image
        where, project = shlex.quote(named or str(run.path / "trackio")), shlex.quote(self._project)
        self.commands = (("curves", f"TRACKIO_DIR={where} trackio show --project {project}"),)

    def latest(self) -> int:
        """The latest step in the database: a killed process may have lost the last half second."""
        step = self._storage.get_max_step_for_run(self._project, self._name)
        return -1 if step is None else step

    def log(self, row: dict[str, Any]) -> None:
        """Logs a row of metrics.jsonl."""
        self._run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])
        self._logged = row["step"]

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Logs numbers and figures at the last step; `files` already lie in the run directory."""
        self._run.log({**values, **{name: self._image(file) for name, file in figures.items()}}, step=step)

    def finish(self, state: str) -> None:
        """Flushes pending rows. Raises RuntimeError if rows are missing."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
        if (latest := self.latest()) < self._logged:
            raise RuntimeError(f"it has stored rows up to step {latest} only")

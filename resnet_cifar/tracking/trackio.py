"""trackio: an SQLite database in RUN/trackio, or in TRACKIO_DIR, and a local dashboard."""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
import secrets
import shlex
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

from resnet_cifar import wandb_env
from resnet_cifar.config.diff import flatten
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.tracking.base import TrackedRun, Tracker, keep_identity, kept_identity

_chosen: list[str] = []  # values of TRACKIO_DIR that are not the user's
_REMOTE = ("TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID")


class TrackioTracker(Tracker):
    """One project with one run. trackio hides its own errors, so its stored rows are checked at the end."""

    package = "trackio"

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Raises UserError where a variable names a server, whose rows this tracker could not read back."""
        if name := next((name for name in _REMOTE if os.environ.get(name)), None):
            raise UserError(f"{name} sends rows to a server, and track.trackers trackio stores them here: unset {name}")

    def __init__(self, run: TrackedRun) -> None:
        named = os.environ.get("TRACKIO_DIR")
        named = None if named in _chosen else named
        folder = Path(named or run.path / "trackio").expanduser().resolve()
        if not named:
            _chosen.append(str(folder))
        is_shared = folder != (run.path / "trackio").resolve()
        if not is_shared:  # with one writer SQLite is safe on a network file system, where trackio avoids it
            os.environ["TRACKIO_STORAGE_MODE"] = os.environ.get("TRACKIO_STORAGE_MODE") or "sqlite"
        os.environ["TRACKIO_DIR"] = str(folder)  # read only when trackio is imported
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        if folder != TRACKIO_DIR:
            raise RuntimeError(
                f"this process already uses it with {TRACKIO_DIR}, and it supports one directory per process"
            )
        self._project, self._storage = run.recipe.track.project, SQLiteStorage
        _import_inbox()
        own = next(iter(SQLiteStorage.get_runs(self._project)), run.path.name)  # the first name of a renamed directory
        self._name = _shared_name(run) if is_shared else own
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
        _import_inbox()
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


def _shared_name(run: TrackedRun) -> str:
    """The run's name in a folder that holds those of several run directories, whose names may be equal."""
    file = run.path / "trackio" / ".id"
    file.parent.mkdir(exist_ok=True)
    name = kept_identity(file) or f"{run.path.name}-{secrets.token_hex(4)}"
    keep_identity(file, name)
    return name


def _import_inbox() -> None:
    """Moves rows to the database from the inbox that trackio has on a network file system, as its dashboard does."""
    with contextlib.suppress(ImportError, OSError, sqlite3.Error):  # an earlier version; locks that cannot be had
        from trackio.fragments import import_inbox_dir

        import_inbox_dir()

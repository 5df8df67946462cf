"""trackio: SQLite in RUN/trackio, and a dashboard on this machine that shows it."""

from __future__ import annotations

import contextlib
import contextvars
import io
import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from resnet_cifar.config.diff import flatten
from resnet_cifar.config.schema import Recipe
from resnet_cifar.tracking.base import Tracker


class Trackio(Tracker):
    """One project of one run. It swallows its own errors, so what it has taken is counted at the end."""

    def __init__(self, recipe: Recipe, run: Path, environment: dict[str, Any]) -> None:
        folder = (run / "trackio").resolve()
        os.environ["TRACKIO_DIR"] = str(folder)  # read when trackio is imported, and never again
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
        from trackio.utils import TRACKIO_DIR

        if folder != TRACKIO_DIR:
            raise RuntimeError(f"this process has used it for {TRACKIO_DIR}, and it knows one folder a process")
        self._project, self._storage = recipe.track.project, SQLiteStorage
        # A folder that was renamed goes on under its first name.
        self._name = next(iter(SQLiteStorage.get_runs(self._project)), run.name)
        self._logged = self.latest()
        config = {**flatten(recipe), "environment": environment}
        begin = partial(trackio.init, self._project, self._name, config=config, resume="allow", embed=False)
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = contextvars.copy_context().run(begin)  # else it would be finished again, at Python's end
        self._image = trackio.Image
        where, project = shlex.quote(str(run / "trackio")), shlex.quote(self._project)
        self.commands = (("curves", f"TRACKIO_DIR={where} trackio show --project {project}"),)

    def latest(self) -> int:
        """The newest step in the data base: a kill may have taken the last half second."""
        return self._storage.get_max_step_for_run(self._project, self._name) or 0

    def log(self, row: dict[str, Any]) -> None:
        """Adds a row of metrics.jsonl."""
        self._run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])
        self._logged = row["step"]

    def summary(self, step: int, values: dict[str, Any], figures: dict[str, Path], files: list[Path]) -> None:
        """Numbers and figures at the last step; files stay where they are, beside it."""
        self._run.log({**values, **{name: self._image(file) for name, file in figures.items()}}, step=step)

    def finish(self, state: str) -> None:
        """Writes what waits. Raises RuntimeError where rows are missing."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()
        if (latest := self.latest()) < self._logged:
            raise RuntimeError(f"it has rows up to step {latest} only")

"""Follows a training process from a notebook or a script: its output, progress, interruption and end."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed.signals import EXIT_RESUBMIT

_POLL = 0.5  # seconds between checks of the run directory
_IDLE_FACTOR = 10  # after drawing, wait this many times as long as it took: training needs the processor


class Interrupted(KeyboardInterrupt):
    """The run was interrupted. The message says at which step and how to resume."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Failed(RuntimeError):
    """Training failed. The message ends with its last lines of output."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


def follow(process: subprocess.Popen, folder: Path, is_shown: bool) -> None:
    """Waits for train.py and shows its progress in a notebook. Raises UserError, Interrupted or Failed.

    A KeyboardInterrupt is forwarded as SIGINT; this function then waits until the run has been saved. If the progress
    cannot be shown, a warning is printed and training continues.
    """
    started, output, interrupted = time.time(), _OutputReader(process), False
    view = _ProgressView(folder, output) if is_shown else None
    try:
        while process.poll() is None:
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL)
                if view:
                    view.update()
            except KeyboardInterrupt:
                interrupted = True
                print("interrupting: the run is being saved", file=sys.stderr, flush=True)
                process.send_signal(signal.SIGINT)
    finally:
        if process.poll() is None:  # an error in this process
            process.terminate()
            process.wait()
        output.join()
    try:
        _raise_if_unfinished(process.returncode, folder, output, started, interrupted)
    finally:
        if view:
            view.update(last=True)


def _raise_if_unfinished(code: int, folder: Path, output: _OutputReader, started: float, interrupted: bool) -> None:
    if output.error:
        raise UserError(output.error)
    status = read_json(folder / "status.json") or {}
    again = "resume" if any(RunDir(folder).checkpoints.glob("step-*[0-9]")) else "start again"
    is_new = status.get("time", 0) >= started
    if is_new and status["state"] == "interrupted":
        where = (
            f"and saved at step {status['step']} of {status['steps']}" if status["step"] else "before the first step"
        )
        raise Interrupted(f"interrupted ({status['why']}) {where}: call again to {again}")
    if code == EXIT_RESUBMIT or (interrupted and code):
        raise Interrupted(f"interrupted with nothing new to save: call again to {again}")
    if code or RunDir(folder).result() is None:
        raise Failed("\n".join([f"train.py exited with code {code}; its last output:", *output.last]))


class _OutputReader:
    """Reads the process's last lines, warnings and error. Outside a notebook, standard error is passed on."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.error = ""
        self.warnings: list[str] = []
        self.last: deque[str] = deque(maxlen=30)
        streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
        self._passes_on = process.stdout is None  # outside a notebook; standard output is then inherited
        self._threads = [threading.Thread(target=self._read, args=(stream,), daemon=True) for stream in streams]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Returns when everything has been read."""
        for thread in self._threads:
            thread.join()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self.last.append(line.rstrip("\n"))
            if found := re.match(r"error: (.*)", line):
                self.error = self.error or found[1]
            elif self._passes_on:
                print(line, end="", file=sys.stderr, flush=True)
            if found := re.match(r"warning: (.*)", line):
                self.warnings.append(found[1])


class _ProgressView:
    """The cell's output, which is updated in place."""

    def __init__(self, folder: Path, output: _OutputReader) -> None:
        self._folder, self._output = folder, output
        self._file_state: Any = None
        self._rows: list[dict[str, Any]] = []
        self._recipe: Recipe | None = None
        self._curves, self._next_update = "", 0.0
        self._started = time.time()
        self._display: Any = None
        self._has_failed = False
        self.update()

    def update(self, last: bool = False) -> None:
        """Redraws what has changed, if it is time to. A failure is reported once; the next update tries again."""
        started = time.monotonic()
        if started < self._next_update and not last:
            return
        try:
            self._draw()
        except Exception as error:  # an unmounted drive, a moved directory: training does not depend on it
            if not self._has_failed:
                reason = f"{type(error).__name__}: {error}"
                print(
                    f"warning: training continues, but its progress cannot be shown ({reason})",
                    file=sys.stderr,
                    flush=True,
                )
            self._has_failed = True
        now = time.monotonic()
        self._next_update = now + _IDLE_FACTOR * (now - started)

    def _draw(self) -> None:
        from IPython.display import HTML, display

        from resnet_cifar.reporting import notebook_panel
        from resnet_cifar.reporting.curves import read_rows

        file = self._folder / "metrics.jsonl"
        facts = file.stat() if file.is_file() else None
        state = (facts.st_mtime_ns, facts.st_size, facts.st_ino) if facts else None
        if state != self._file_state:
            rows = read_rows(file)
            if rows and self._recipe is None:
                self._recipe = read_recipe(str(self._folder / "recipe.yaml"))
            drawn = notebook_panel.curves(rows, bool(self._recipe and self._recipe.augment.mixes))
            self._file_state, self._rows, self._curves = state, rows, drawn
        panel = HTML(self._panel())
        if self._display is None:
            self._display = display(panel, display_id=True)
        else:
            self._display.update(panel)

    def _panel(self) -> str:
        from resnet_cifar.reporting import notebook_panel

        status = read_json(self._folder / "status.json") or {}
        steps = status.get("steps", 0)
        is_stale = status.get("time", 0) < self._started
        state = "starting" if is_stale else status["state"]
        if state == "running":
            state = "evaluating the test split" if self._rows and self._rows[-1]["step"] == steps else "training"
        rows = [] if is_stale else self._rows
        curves = "" if is_stale else self._curves
        select_by = self._recipe.evaluate.select_by if self._recipe else "accuracy"
        return notebook_panel.panel(str(self._folder), state, steps, rows, self._output.warnings, curves, select_by)

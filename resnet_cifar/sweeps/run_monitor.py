"""A start of train.py, followed from a notebook or a script: what it says, how it ends, how it is stopped."""

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
from resnet_cifar.distributed.signals import EXIT_RESUBMIT

_LOOK = 0.5  # seconds between looks at the run folder
_SHARE = 10  # drawing takes at most one part in so many of the time: training needs the processor


class Stopped(KeyboardInterrupt):
    """The run was interrupted. The message says where it is and how to go on."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Failed(RuntimeError):
    """train.py broke. The message ends with the last lines that it said."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


def follow(process: subprocess.Popen, folder: Path, is_shown: bool) -> None:
    """Waits for train.py, and shows in a notebook how it goes. Raises UserError, Stopped or Failed where it went wrong.

    A KeyboardInterrupt becomes the process's SIGINT, and is waited for until the run is saved. What cannot be drawn is
    said, and stops nothing.
    """
    began, heard, stopped = time.time(), _Heard(process), False
    view = _View(folder, heard) if is_shown else None
    try:
        while process.poll() is None:
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK)
                if view:
                    view.look()
            except KeyboardInterrupt:
                stopped = True
                print("stopping: it saves first", file=sys.stderr, flush=True)
                process.send_signal(signal.SIGINT)
    finally:
        if process.poll() is None:  # something went wrong here
            process.terminate()
            process.wait()
        heard.join()
    try:
        _conclude(process.returncode, folder, heard, began, stopped)
    finally:
        if view:
            view.look(last=True)


def _conclude(code: int, folder: Path, heard: _Heard, began: float, stopped: bool) -> None:
    if heard.error:
        raise UserError(heard.error)
    status = read_json(folder / "status.json") or {}
    is_new = status.get("time", 0) >= began
    if is_new and status["state"] == "interrupted":
        raise Stopped(
            f"interrupted ({status['why']}) at step {status['step']} of {status['steps']}, and saved: "
            "the same call goes on from there"
        )
    if code == EXIT_RESUBMIT or (stopped and code):
        raise Stopped("stopped with nothing new to save: the same call goes on where the run was")
    if code or RunDir(folder).result() is None:
        raise Failed("\n".join([f"train.py ended with code {code}, and said last:", *heard.last]))


class _Heard:
    """What the process prints: its last lines, its warnings and the sentence of a mistake. Other lines go where ours do
    where nobody shows them."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.error = ""
        self.warnings: list[str] = []
        self.last: deque[str] = deque(maxlen=30)
        streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
        self._is_alone = process.stdout is None  # standard output is the user's own
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
            elif self._is_alone:
                print(line, end="", file=sys.stderr, flush=True)
            if found := re.match(r"warning: (.*)", line):
                self.warnings.append(found[1])


class _View:
    """The cell's output, drawn anew in its place."""

    def __init__(self, folder: Path, heard: _Heard) -> None:
        self._folder, self._heard = folder, heard
        self._seen: Any = None
        self._rows: list[dict[str, Any]] = []
        self._curves, self._next = "", 0.0
        self._began = time.time()
        self._display: Any = None
        self._has_failed = False
        self.look()

    def look(self, last: bool = False) -> None:
        """Draws what has changed since the last look, if it is time to. Says once where that fails, and tries again."""
        began = time.monotonic()
        if began < self._next and not last:
            return
        try:
            self._draw()
        except Exception as error:  # a drive that is away, a folder that is moved: the run does not care
            if not self._has_failed:
                what = f"{type(error).__name__}: {error}"
                print(f"warning: the run goes on, but cannot be shown ({what})", file=sys.stderr, flush=True)
            self._has_failed = True
        now = time.monotonic()
        self._next = now + _SHARE * (now - began)

    def _draw(self) -> None:
        from IPython.display import HTML, display

        from resnet_cifar.reporting import notebook_panel
        from resnet_cifar.reporting.curves import read_rows

        file = self._folder / "metrics.jsonl"
        facts = file.stat() if file.is_file() else None
        seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino) if facts else None
        if seen != self._seen:
            rows = read_rows(file)
            self._seen, self._rows, self._curves = seen, rows, notebook_panel.curves(rows)
        panel = HTML(self._panel())
        if self._display is None:
            self._display = display(panel, display_id=True)
        else:
            self._display.update(panel)

    def _panel(self) -> str:
        from resnet_cifar.reporting import notebook_panel

        status = read_json(self._folder / "status.json") or {}
        steps = status.get("steps", 0)
        is_of_before = status.get("time", 0) < self._began
        state = "starting" if is_of_before else status["state"]
        if state == "running":
            state = "scoring the test split" if self._rows and self._rows[-1]["step"] == steps else "training"
        rows = [] if is_of_before else self._rows
        curves = "" if is_of_before else self._curves
        return notebook_panel.panel(str(self._folder), state, steps, rows, self._heard.warnings, curves)

"""All runs below some directories, with their state, progress and results, from a few small files of each."""

from __future__ import annotations

import json
import os
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from rich.markup import escape
from rich.table import Table

from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints.lease import Lease
from resnet_cifar.checkpoints.run_dir import EARLIER_FILES, check_version
from resnet_cifar.config.errors import UserError
from resnet_cifar.reporting.console import duration, seconds_left

_MARKS = {"status.json", "lease.json", *EARLIER_FILES}  # files of a run directory
_TAIL = 16 * 1024  # bytes at the end of metrics.jsonl, which hold its latest rows
_SILENCE = 900.0  # seconds without a sign after which a run on another machine may have been killed
_SLOW_ROWS = 4  # ... or as many times the interval of its rows
_CLOCKS = 60.0  # seconds by which clocks may differ
T = TypeVar("T")


@checked_dataclass(frozen=True)
class _Status:
    """The fields of status.json that are shown."""

    state: str
    time: float
    step: int = 0
    steps: int | None = None
    job: str | None = None
    why: str = ""


@checked_dataclass(frozen=True)
class _Row:
    """The fields of a row of metrics.jsonl that tell how fast a run is."""

    step: int
    images: int
    images_per_second: float


_STATUS, _LEASE, _ROW = TypeAdapter(_Status), TypeAdapter(Lease), TypeAdapter(_Row)


@dataclass(frozen=True)
class ListedRun:
    """A run directory. `state` is that of status.json, or `starting`, `killed`, `silent` or `damaged`.

    `silent`: on another machine, without a sign for long. `active`: when it gave one, in seconds since the epoch.
    `val_accuracy`: of the best model so far. `seconds_left`: of training, at the latest speed. None: not known.
    """

    run: str
    state: str
    active: float
    step: int | None = None
    steps: int | None = None
    seconds_left: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    job: str | None = None
    why: str = ""


def list_runs(roots: Sequence[Path]) -> list[ListedRun]:
    """The runs at and below `roots`, also those of seeds and searches, the latest active first."""
    folders = {folder.resolve(): folder for root in roots for folder in run_folders(root)}
    return sorted((_listed(folder) for folder in folders.values()), key=lambda run: run.active, reverse=True)


def table(runs: Sequence[ListedRun]) -> Table:
    """A row per run."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "state", "step", "", "left", "val", "test", "active", "job", "why"):
        made.add_column(name, no_wrap=name != "run", overflow="fold" if name == "run" else "ellipsis")
    now = time.time()
    for run in runs:
        done = f"{run.step / run.steps:.0%}" if run.step is not None and run.steps else ""
        steps = "" if run.step is None else f"{run.step}/{'?' if run.steps is None else run.steps}"
        left = "" if run.seconds_left is None else duration(run.seconds_left)
        scores = ("-" if score is None else f"{score:.4f}" for score in (run.val_accuracy, run.test_accuracy))
        ago = f"{duration(max(now - run.active, 0))} ago"
        made.add_row(*map(escape, (run.run, run.state, steps, done, left, *scores, ago, run.job or "", run.why)))
    return made


def run_folders(root: Path) -> Iterator[Path]:
    """The run directories at and below `root`; those inside of others are not looked for."""
    for folder, names, files in os.walk(root):
        if _MARKS & set(files):
            names.clear()
            yield Path(folder)
        names[:] = [name for name in names if not name.startswith(".")]


def _listed(folder: Path) -> ListedRun:
    try:
        return _read(folder)
    except (UserError, OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{error.title.strip('_')}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        return ListedRun(str(folder), "damaged", _changed(folder), why=reason)


def _read(folder: Path) -> ListedRun:
    check_version(folder)
    status, lease = _typed(_STATUS, folder / "status.json"), _typed(_LEASE, folder / "lease.json")
    active = max(_changed(folder / name) for name in ("status.json", "lease.json", "metrics.jsonl"))
    if status is None:
        state = "killed" if lease and _is_gone(lease) else "starting"
        return ListedRun(str(folder), state, active)
    facts: dict[str, Any] = {"step": status.step, "steps": status.steps, "why": status.why}
    facts["job"] = status.job and status.job.partition(".")[0]  # without the number of the attempt
    if status.state == "finished":
        result = read_json(folder / "result.json") or {}
        scores = {f"{split}_accuracy": result.get(f"{split}/accuracy") for split in ("val", "test")}
        return ListedRun(str(folder), "finished", active, **facts, **scores)
    state, rows = status.state, _latest_rows(folder / "metrics.jsonl")
    if rows:
        left = seconds_left(status.steps or 0, [vars(row) for row in rows])
        facts |= {"step": max(status.step, rows[-1].step) if state == "running" else status.step, "seconds_left": left}
    if state == "running" and lease:
        state = _state_of_running(lease, rows, active)
    return ListedRun(str(folder), state, active, **facts, val_accuracy=_best_so_far(folder / "checkpoints"))


def _typed(kind: TypeAdapter[T], file: Path) -> T | None:
    """The content of a JSON file, None without the file. Raises UserError and pydantic's ValidationError."""
    content = read_json(file)
    return None if content is None else kind.validate_python(content)


def _changed(path: Path) -> float:
    """When a file was last written, in seconds since the epoch; 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _state_of_running(lease: Lease, rows: Sequence[_Row], active: float) -> str:
    """What a run that calls itself running does."""
    if lease.host == socket.gethostname():
        return "killed" if _is_gone(lease) else "running"
    seconds = [(b.images - a.images) / b.images_per_second for a, b in pairwise(rows) if b.images_per_second]
    patience = max(_SILENCE, _SLOW_ROWS * statistics.median(seconds) if seconds else 0.0)
    return "silent" if time.time() - active > patience else "running"


def _is_gone(lease: Lease) -> bool:
    """Whether the attempt ran on this machine and its process no longer exists."""
    if lease.host != socket.gethostname():
        return False
    try:
        return psutil.Process(lease.pid).create_time() > lease.time + _CLOCKS  # another one has its number now
    except psutil.Error:
        return True


def _latest_rows(file: Path) -> list[_Row]:
    """The latest rows that tell a speed; a row that is damaged or half written is left out."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
            lines = stream.read().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(_ROW.validate_json(line))
        except ValidationError:
            continue
    return rows


def _best_so_far(checkpoints: Path) -> float | None:
    """The validation accuracy of the best model, of which the latest checkpoint knows."""
    try:
        complete = (path for path in checkpoints.iterdir() if not path.suffix)  # the others are being written
        newest = max(complete, default=None)
        best = (newest and json.loads((newest / "state.json").read_bytes()).get("best")) or {}
        return float(best["val/accuracy"]) if "val/accuracy" in best else None
    except (OSError, ValueError, TypeError, AttributeError):  # being written or removed, or damaged: train.py will tell
        return None

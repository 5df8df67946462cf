"""metrics.jsonl: one JSON row per line. A resumed run removes the rows after its checkpoint and writes them again."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import atomic_write


class MetricsLog:
    """Appends to metrics.jsonl after the row of update `step`. Before every write `check_lease` may refuse by raising.

    The rows to keep are copied to a new file that replaces the old one: if an earlier attempt still appends, it does so
    to its own file, which no longer has a name.
    """

    def __init__(self, file: Path, step: int, check_lease: Callable[[], None]) -> None:
        self._check_lease = check_lease
        check_lease()
        with atomic_write(file, before_rename=check_lease) as aside:
            if file.is_file():
                shutil.copyfile(file, aside)
                os.truncate(aside, end_of_rows(aside, step))
            self.stream = aside.open("ab")

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row; it is in the file, not necessarily on disk, on return."""
        self._check_lease()
        self.stream.write(json.dumps(row).encode() + b"\n")
        self.stream.flush()

    def sync(self) -> None:
        """Flushes all rows to disk: a checkpoint must not outlive its rows."""
        self._check_lease()
        os.fsync(self.stream.fileno())


def end_of_rows(file: Path, step: int) -> int:
    """The size in bytes of the rows up to update `step`. Searches from the end, so resuming a long run is fast."""
    if not file.stat().st_size:
        return 0
    with file.open("rb") as stream, contextlib.ExitStack() as stack:
        try:
            content = stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError:  # a mounted drive that does not map files
            content = stream.read()
        end = content.rfind(b"\n") + 1  # a row cut short by a kill has no newline
        while end:
            begin = content.rfind(b"\n", 0, end - 1) + 1
            with contextlib.suppress(ValueError, TypeError, KeyError):  # rows damaged by a power cut are removed too
                if json.loads(content[begin:end])["step"] <= step:
                    break
            end = begin
        return end

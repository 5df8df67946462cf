"""Files extracted from an archive: all in one temporary file, from which images are read on demand."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from resnet_cifar.cache_folder import cache_root
from resnet_cifar.data.cache import write_errors


class MemberSpool:
    """Members of an archive in one anonymous file, deleted with the process. Raises UserError on a full disk."""

    def __init__(self) -> None:
        with write_errors():
            self._file = tempfile.TemporaryFile(dir=cache_root())  # noqa: SIM115
        self._extents: dict[str, list[int]] = {}  # start and size
        self._end = 0

    def begin(self, name: str) -> None:
        """Starts a member: what is written next belongs to it."""
        self._current = self._extents[name] = [self._end, 0]

    def write(self, content: bytes) -> int:
        """Appends to the current member."""
        with write_errors():
            self._file.write(content)
        self._end += len(content)
        self._current[1] += len(content)
        return len(content)

    def flush(self) -> None:
        """Makes what was written readable."""
        with write_errors():
            self._file.flush()

    def size(self, name: str) -> int:
        """Bytes of a member, 0 if it is missing."""
        return self._extents.get(name, (0, 0))[1]

    def read(self, name: str) -> bytes:
        """The content of a member; thread-safe."""
        start, size = self._extents[name]
        return os.pread(self._file.fileno(), size, start)

    def as_file(self) -> BinaryIO:
        """All members as one file, positioned at its start."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Frees the disk space."""
        with contextlib.suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()


@dataclass(frozen=True)
class SpooledImages(Sequence):
    """Encoded images for `image_io.to_rgb`, read when they are sliced; messages show their names below `root`."""

    spool: MemberSpool
    names: list[str]
    root: Path

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return [self[row] for row in range(*rows.indices(len(self)))]
        return {"bytes": self.spool.read(self.names[rows]), "path": str(self.root / self.names[rows])}

"""What is taken out of an archive: many members in one file, and pictures read from it where they are asked for."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from resnet_cifar.data.cache import writing
from resnet_cifar.data.paths import cache_root


class MemberSpool:
    """Many members' bytes in one file without a name. Raises UserError where there is no room."""

    def __init__(self) -> None:
        with writing():
            self._file = tempfile.TemporaryFile(dir=cache_root())  # noqa: SIM115
        self._places: dict[str, list[int]] = {}
        self._end = 0

    def begin(self, name: str) -> None:
        """What is written from now on belongs to this member."""
        self._last = self._places[name] = [self._end, 0]

    def write(self, content: bytes) -> int:
        """Appends, as files do."""
        with writing():
            self._file.write(content)
        self._end += len(content)
        self._last[1] += len(content)
        return len(content)

    def flush(self) -> None:
        """Makes readable what was written."""
        with writing():
            self._file.flush()

    def size(self, name: str) -> int:
        """Bytes of a member, 0 where it has not come."""
        return self._places.get(name, (0, 0))[1]

    def read(self, name: str) -> bytes:
        """A member; threads may read at the same time."""
        start, size = self._places[name]
        return os.pread(self._file.fileno(), size, start)

    def file(self) -> BinaryIO:
        """All of it, as a file."""
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Gives the room back at once, not only with the last picture."""
        with contextlib.suppress(OSError):  # of a full disk, again
            self._file.close()


@dataclass(frozen=True)
class SpooledImages(Sequence):
    """Encoded pictures as `pixels.rgb` takes them, read where they are sliced; their names are shown below `root`."""

    kept: MemberSpool
    names: list[str]
    root: Path

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return [self[row] for row in range(*rows.indices(len(self)))]
        return {"bytes": self.kept.read(self.names[rows]), "path": str(self.root / self.names[rows])}

"""Which collectives this process has entered, numbered alike on every rank: what a hang is explained from.

The latest entry also lies in memory that the other processes of the machine can map. There it can be read when this
process is stopped, when something in it holds the interpreter's lock, and after its death.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from collections import deque
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

KEPT = 256  # the latest calls
_SHARED = 512  # bytes: whether the process waits, and its latest call
_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_CONTEXT = f"{Path(__file__).parent / 'context.py'}"  # its frames say nothing about who called


class Call(NamedTuple):
    """One call: the `number`-th of its rank, an `all-reduce` of `step 456`, from `evaluation/predict.py:69`.

    DDP reduces gradients during a backward pass, at no place of ours: there `place` is "".
    """

    number: int
    kind: str
    phase: str
    place: str

    def __str__(self) -> str:
        return f"the {self.kind} of {self.phase}{f' at {self.place}' if self.place else ''}"


NO_CALL = Call(0, "creation of the process group", "the start", "")


class CollectiveLog:
    """This process's calls. `phase` is what the main thread is doing, `waiting` whether it may wait for others.

    Entering costs about a microsecond and touches neither device nor disk. Only the main thread enters.
    """

    def __init__(self) -> None:
        self.phase = "the start"
        self._recent = deque([NO_CALL], maxlen=KEPT)
        self._places: dict[tuple[CodeType, int], str] = {}
        self._memory: bytearray | mmap.mmap = bytearray(_SHARED)

    def share(self) -> int:
        """Makes the latest call readable by the machine's other processes; the descriptor of its memory."""
        fd = anonymous_file("collectives")
        os.truncate(fd, _SHARED)
        memory = mmap.mmap(fd, _SHARED)
        memory[:] = bytes(self._memory)
        self._memory = memory
        return fd

    @property
    def waiting(self) -> bool:
        """Whether the main thread may be waiting for other processes or for the device."""
        return self._memory[0] == 1

    @waiting.setter
    def waiting(self, value: bool) -> None:
        self._memory[0] = value

    @property
    def latest(self) -> Call:
        """The last call that was entered."""
        return self._recent[-1]

    @property
    def recent(self) -> list[Call]:
        """The latest calls, oldest first."""
        return list(self._recent)

    def enter(self, kind: str, frame: FrameType | None) -> None:
        """The main thread begins a call of this kind, which `frame` (or one that called it) asked for."""
        place = ""
        if frame is not None:
            while frame.f_code.co_filename == _CONTEXT and frame.f_back is not None:
                frame = frame.f_back
            key = frame.f_code, frame.f_lineno
            place = self._places.get(key) or self._places.setdefault(key, place_of(*key))
        call = Call(self._recent[-1].number + 1, kind, self.phase, place)
        self._recent.append(call)
        text = f"{call.number}\n{kind}\n{self.phase}\n{place}\n".encode()[: _SHARED - 2] + b"\0"
        self._memory[1 : 1 + len(text)] = text


class NeighborLog:
    """The latest call of another process of this machine, which stays readable after that process has ended.

    Raises OSError where the memory cannot be reached: another container or user, or a process that is gone.
    """

    def __init__(self, pid: int, fd: int) -> None:
        with Path(f"/proc/{pid}/fd/{fd}").open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), _SHARED, access=mmap.ACCESS_READ)

    def read(self) -> tuple[Call, bool]:
        """(the latest call, whether the process may wait for others)."""
        text = self._memory[1:].split(b"\0", 1)[0].decode(errors="replace")
        with contextlib.suppress(ValueError):
            number, kind, phase, place, _ = text.split("\n")
            return Call(int(number), kind, phase, place), self._memory[0] == 1
        return NO_CALL, False


def place_of(code: CodeType, line: int) -> str:
    """`data/loader.py:88` in the package; `sitecustomize.py:88` elsewhere."""
    return place_in(code.co_filename, line)


def place_in(file: str, line: int) -> str:
    """The same, of a file's name."""
    return f"{file.removeprefix(_PACKAGE) if is_ours(file) else Path(file).name}:{line}"


def is_ours(file: str) -> bool:
    """Whether the file is a module of the package."""
    return file.startswith(_PACKAGE)


def is_caller(file: str) -> bool:
    """Whether it is one that may call a collective."""
    return is_ours(file) and file != _CONTEXT


def anonymous_file(name: str) -> int:
    """The descriptor of a file without a name, which no crash leaves behind; in memory on Linux."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())

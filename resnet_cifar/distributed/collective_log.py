"""Which collectives this process has entered, numbered alike on every rank: what a hang is explained from.

The latest entries also lie in memory that the other processes of the machine can map. There they can be read when this
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
_ENTRY = 192  # bytes of one of them in shared memory
_SHARED = 1 + KEPT * _ENTRY  # the first byte: whether the process waits
_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"
_CONTEXT = f"{Path(__file__).parent / 'context.py'}"  # its frames say nothing about who called


class Call(NamedTuple):
    """One call: the `number`-th of its rank, an `all-reduce` of `step 456`, from `evaluation/predict.py:69`.

    DDP reduces gradients during a backward pass, at no place of ours: there `place` is "". `unit`: how many units of
    work (steps and evaluation batches) the rank had begun.
    """

    number: int
    kind: str
    phase: str
    place: str
    unit: int = 0

    def __str__(self) -> str:
        return f"the {self.kind} of {self.phase}{f' at {self.place}' if self.place else ''}"


NO_CALL = Call(0, "creation of the process group", "the start", "")


class CollectiveLog:
    """This process's calls, and `waiting`: whether the main thread may be waiting for others.

    Entering costs about a microsecond and touches neither device nor disk. Only the main thread enters.
    """

    def __init__(self) -> None:
        self.phase, self._unit = "the start", 0
        self._recent = deque([NO_CALL], maxlen=KEPT)
        self._places: dict[tuple[CodeType, int], str] = {}
        self._memory: bytearray | mmap.mmap = bytearray(_SHARED)

    def begin(self, phase: str) -> None:
        """The main thread begins the next unit of work, which belongs to `phase`."""
        self.phase = phase
        self._unit += 1

    def share(self) -> int:
        """Makes the latest calls readable by the machine's other processes; the descriptor of its memory."""
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
        call = Call(self._recent[-1].number + 1, kind, self.phase, place, self._unit)
        self._recent.append(call)
        text = f"{call.number}\n{kind}\n{self.phase}\n{place}\n{self._unit}\n".encode()[:_ENTRY]
        start = 1 + call.number % KEPT * _ENTRY
        self._memory[start : start + _ENTRY] = text.ljust(_ENTRY, b"\0")


class NeighborLog:
    """The latest calls of another process of this machine, which stays readable after that process has ended.

    Raises OSError where the memory cannot be reached: another container or user, or a process that is gone.
    """

    def __init__(self, pid: int, fd: int) -> None:
        with Path(f"/proc/{pid}/fd/{fd}").open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), _SHARED, access=mmap.ACCESS_READ)

    def read(self) -> tuple[list[Call], bool]:
        """(the latest calls, oldest first, and whether the process may be waiting in the last one)."""
        memory = self._memory[:]
        while memory != (again := self._memory[:]):  # an entry is just being written
            memory = again
        calls = [NO_CALL]
        for start in range(1, _SHARED, _ENTRY):
            with contextlib.suppress(ValueError):  # not written yet, or cut off
                number, kind, phase, place, unit, _ = memory[start : start + _ENTRY].decode().split("\n")
                calls.append(Call(int(number), kind, phase, place, int(unit)))
        return sorted(calls)[-KEPT:], memory[0] == 1


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

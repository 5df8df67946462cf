"""Stacks, memory and device of this process, and what can be seen of another process of the machine from outside.

Nothing here waits for the device, for another rank or, outside of `write`, for a file system: any of them may be what
hangs. Stacks therefore come without source lines, which would be read from files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
import torch.distributed as dist

from resnet_cifar.distributed import collective_log
from resnet_cifar.distributed.collective_log import Call
from resnet_cifar.distributed.hang_report import RankReport

FLIGHT_RECORDER = "flight_recorder_"  # with the rank's number: files that `torchfrtrace` reads
_MOST_BYTES = 256 * 1024  # of one rank's stacks
_IN_STACK = re.compile(r'^ *File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$')


class OwnReport:
    """This process when the run hangs; everything is gathered on construction, without waiting."""

    def __init__(self, rank: int, calls: list[Call], waiting: bool, device: torch.device) -> None:
        self.rank, self._device = rank, device
        frames = sys._current_frames()
        main = threading.main_thread()
        self.report = RankReport(calls, waiting, _innermost(_stack(frames.get(main.ident))), main_thread_state())
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        order = sorted(frames, key=lambda ident: ident != main.ident)
        self._stacks = "\n".join(
            "\n".join([f"Thread {names.get(ident, ident)}, innermost frame first:", *_lines(_stack(frames[ident]))])
            for ident in order
        )

    def write(self, folder: Path) -> None:
        """Writes rank-N.txt, rank-N.json and the flight recorder's buffer. May wait for a file system or the device."""
        stem = f"rank-{self.rank}"
        about = f"rank {self.rank} on {socket.gethostname()}, process {os.getpid()} ({self.report.state})"
        write(folder, f"{stem}.txt", f"{about}\n\n{self._stacks[:_MOST_BYTES]}\n")
        facts = {"rank": self.rank, "host": socket.gethostname(), "pid": os.getpid(), **self.report.to_json()}
        facts["calls"] = [str(call) for call in self.report.calls]
        write(folder, f"{stem}.json", json.dumps({**facts, "memory": _memory()}, indent=1))
        trace = flight_recorder_trace(self._device)
        if trace:
            write(folder, f"{FLIGHT_RECORDER}{self.rank}", trace)
        if self._device.type == "cuda":  # last: a driver that hangs may keep even this from returning
            write(folder, f"{stem}.json", json.dumps({**facts, "memory": _memory(), **_gpu(self._device)}, indent=1))


def write(folder: Path, name: str, content: str | bytes) -> None:
    """Writes one file into the folder, which is created where the run directory exists."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def main_thread_state() -> str:
    """The state of this process's main thread, as psutil names it."""
    with contextlib.suppress(psutil.Error):
        return psutil.Process().status()
    return ""


def flight_recorder_trace(device: torch.device) -> bytes:
    """The flight recorder's buffer, in the format of `torchfrtrace`; empty where this torch has no recorder."""
    from torch._C import _distributed_c10d as c10d

    if device.type == "cuda" and dist.is_nccl_available():
        return c10d._dump_nccl_trace()
    return c10d._dump_fr_trace(backend="gloo") if hasattr(c10d, "_dump_fr_trace") else b""


def _memory() -> dict[str, int]:
    """Bytes: of this process, and of the machine."""
    machine = psutil.virtual_memory()
    return {"process": psutil.Process().memory_info().rss, "available": machine.available, "total": machine.total}


def _gpu(device: torch.device) -> dict[str, Any]:
    """The allocator's bytes, and whether the device has finished all that it was given."""
    free, total = torch.cuda.mem_get_info(device)
    return {
        "gpu": torch.cuda.get_device_name(device),
        "gpu_memory": {
            "allocated": torch.cuda.memory_allocated(device),
            "reserved": torch.cuda.memory_reserved(device),
            "most_allocated": torch.cuda.max_memory_allocated(device),
            "free": free,
            "total": total,
        },
        "gpu_is_idle": torch.cuda.default_stream(device).query(),
    }


def observe(pid: int, latest: tuple[list[Call], bool] | None, stacks: Path) -> RankReport:
    """A process of this machine, from outside; `latest`: its shared memory; `stacks`: faulthandler's output, if any."""
    try:
        state = psutil.Process(pid).status()
    except psutil.Error:
        state = "ended"
    calls, waiting = latest or ([], False)
    report = RankReport(calls, waiting, "", "ended" if state == "zombie" else state, False, latest is not None)
    return replace(report, place=_innermost(_last_stack(_read(stacks))))


def describe_neighbor(rank: int, pid: int, report: RankReport, stacks: Path) -> str:
    """The text of rank-N.txt for a process that cannot write it itself."""
    about = f"rank {rank}, process {pid} ({report.state}), does not respond: seen by another process of its machine\n"
    for name in ("wchan", "stack", "status"):
        about += f"\n/proc/{pid}/{name}:\n{_read(Path(f'/proc/{pid}/{name}'))}\n"
    return f"{about}\nPython stacks, innermost frame first (none of a stopped process):\n{_read(stacks)}"[:_MOST_BYTES]


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")[:_MOST_BYTES]
    except OSError as error:
        return f"({error.strerror})"


# Stacks

_Frame = tuple[str, int, str]  # file, line, function


def _stack(frame: FrameType | None) -> list[_Frame]:
    """Innermost first."""
    found = []
    while frame is not None:
        code = frame.f_code
        found.append((code.co_filename, frame.f_lineno, getattr(code, "co_qualname", code.co_name)))  # Python 3.11+
        frame = frame.f_back
    return found


def _lines(stack: Iterable[_Frame]) -> list[str]:
    return [f'  File "{file}", line {line} in {name}' for file, line, name in stack]


def _last_stack(text: str) -> list[_Frame]:
    """The main thread's stack in faulthandler's output, which has it last."""
    block = text.rsplit("Thread 0x", 1)[-1]
    found = (_IN_STACK.match(line) for line in block.splitlines())
    return [(match["file"], int(match["line"]), match["name"]) for match in found if match]


def _innermost(stack: list[_Frame]) -> str:
    """`data/loader.py:88`, the innermost frame of the package, and the innermost of all if it is another."""
    if not stack:
        return ""
    file, line, name = stack[0]
    here = f"{collective_log.place_in(file, line)} ({name})"
    ours = next(((f, n) for f, n, _ in stack if collective_log.is_caller(f)), None)
    if ours is None:
        return here
    place = collective_log.place_in(*ours)
    return place if ours == (file, line) or collective_log.is_ours(file) else f"{place}, in {here}"

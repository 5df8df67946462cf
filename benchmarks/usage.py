"""What a command takes: `python benchmarks/usage.py LOG COMMAND ...` runs it and prints its figures as JSON.

seconds      of wall-clock time
cpu_seconds  of the process and all its children, in user and system mode
peak_bytes   the largest of one process's peak resident size and of sampled sums over all of its processes, in which
             pages that several share count once (proportional set size)

It is a process of its own, and a small one: until a child calls exec, the kernel counts its parent's pages as the
child's own, so that a parent with torch in memory would hide the peak of every smaller child.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil

_SAMPLE_EVERY = 0.2  # seconds


def main(log: str, command: list[str]) -> int:
    """The exit code of the command, whose output goes to the file `log`."""
    with open(log, "wb") as file:  # noqa: PTH123  nothing more is imported than is needed
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    sampled, ended = [0], threading.Event()
    sampler = threading.Thread(target=_sample, args=(process.pid, sampled, ended))
    sampler.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        ended.set()
        sampler.join()
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": max(usage.ru_maxrss * 1024, sampled[0]),
    }
    print(json.dumps(found))
    return process.returncode


def _sample(pid: int, most: list[int], ended: threading.Event) -> None:
    """Keeps the largest size in most[0]."""
    while not ended.wait(_SAMPLE_EVERY):
        try:
            most[0] = max(most[0], held(pid))
        except psutil.Error:
            return


def held(pid: int) -> int:
    """Bytes that the process and all its descendants have in memory."""
    root = psutil.Process(pid)
    return sum(map(_proportional_size, (root, *root.children(recursive=True))))


def _proportional_size(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it has just ended
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

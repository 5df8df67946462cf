"""Starts N processes at one moment: `python starting_at_once.py N ARGUMENTS`, each of which runs train.py's command.

They are forks of this process, which has imported what they need, and write what they print into N.out and N.err.
"""

from __future__ import annotations

import gc
import os
import sys

import datasets  # noqa: F401

import resnet_cifar.training.preflight  # noqa: F401
from resnet_cifar.cli.entry import run_command


def main(processes: int, arguments: list[str]) -> list[int]:
    """The exit codes."""
    gc.freeze()
    begins, begin = os.pipe()
    started = []
    for number in range(processes):
        if not (pid := os.fork()):
            os.close(begin)
            for descriptor, kind in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{number}.{kind}", os.O_WRONLY | os.O_CREAT), descriptor)
            os.read(begins, 1)  # returns when all are there
            sys.argv = ["train.py", *arguments]
            try:
                os._exit(run_command("train") or 0)
            finally:
                sys.stderr.flush()
                os._exit(1)
        started.append(pid)
    os.close(begin)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]


if __name__ == "__main__":
    sys.exit(max(map(abs, main(int(sys.argv[1]), sys.argv[2:]))))

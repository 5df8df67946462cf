"""train.py, asked to stop at a chosen point: `accelerate launch ... stopping.py update|evaluation NUMBER ARGUMENTS`.

In update NUMBER, or in the NUMBER-th batch that this start evaluates, the last rank sends itself SIGTERM, and no rank
goes on before all have agreed where to stop: they stop right after it.
"""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import sys
from pathlib import Path

from resnet_cifar.distributed.watchdog import Watchdog

TRAIN = Path(__file__).parents[2] / "train.py"


def stop_in(kind: str, number: int) -> None:
    """Patches the watch."""
    check_stop = Watchdog.check_stop
    batches = itertools.count(1)

    def stopping(self: Watchdog, step: int | None = None) -> None:
        check_stop(self, step)
        where = ("evaluation", next(batches)) if step is None else ("update", step)
        if where == (kind, number):
            if self.rank == self.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            with self._changed:
                self._changed.wait_for(lambda: self._stop is not None)

    Watchdog.check_stop = stopping


if __name__ == "__main__":
    stop_in(sys.argv[1], int(sys.argv[2]))
    sys.argv = [str(TRAIN), *sys.argv[3:]]
    runpy.run_path(sys.argv[0], run_name="__main__")

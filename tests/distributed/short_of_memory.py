"""train.py on a machine where one rank is short of memory: `... short_of_memory.py RANK ROWS STEP ARGUMENTS`.

From update STEP on (0: from the start, the search included) a pass of training of more than ROWS images fails there.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import torch
from timm.models.resnet import ResNet

from resnet_cifar.distributed.watchdog import Watchdog

TRAIN = Path(__file__).parents[2] / "train.py"


def be_short(rank: int, rows: int, from_step: int) -> None:
    """Patches the model, and the watch, which knows the step."""
    forward, check_stop, now = ResNet.forward_features, Watchdog.check_stop, [from_step == 0]

    def failing(self: ResNet, inputs: torch.Tensor) -> torch.Tensor:
        is_short = now[0] and int(os.environ["RANK"]) == rank and len(inputs) > rows and not inputs.is_meta
        if torch.is_grad_enabled() and is_short:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")
        return forward(self, inputs)

    def ticking(self: Watchdog, step: int | None = None) -> None:
        check_stop(self, step)
        now[0] |= step is not None and step >= from_step

    ResNet.forward_features, Watchdog.check_stop = failing, ticking


if __name__ == "__main__":
    be_short(*map(int, sys.argv[1:4]))
    sys.argv = [str(TRAIN), *sys.argv[4:]]
    runpy.run_path(sys.argv[0], run_name="__main__")

"""Trains worlds of several processes that hang on purpose: `python hanging.py FOLDER < PLAN > RESULTS`.

PLAN is a JSON list of {"kind": ..., "rank": 1, "step": 5, "processes": 2}. Each world is a whole run of `resnet-cifar
train`, whose processes are forks of this one, so that torch is loaded once; they meet over gloo, as under torchrun.

Kinds, each at the moment when the rank loads the batch of `step` + 1, or calls for `step`'s metrics:
    stopped     SIGSTOP, as by a debugger or a scheduler
    loop        an endless loop in Python
    held        a call in C that does not release the interpreter's lock
    disk        a FIFO that nobody writes to is opened: as a file of a file server that is gone
    skipped sum, skipped gather    one call for metrics, or for an evaluation, is left out
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faulty import RECIPE

# Evaluations after the first step and after every sixth; whatever hangs does so before the tenth.
BRIEF = {
    "--track.trackers": "none",
    "--data.limit": 120,
    "--evaluate.every_epochs": 3,
    "--checkpoint.every_steps": 100,
    "--model.ema_decay": 0,
    "--model.ghost_batch_size": 4,  # four processes have twelve rows each
    "--micro_batch": 4,
    "--phases.0.epochs": 0.5,
    "--phases.0.trainable": "all",
    "--rank_timeout": 4,
}
AT_ONCE = 2  # worlds


def hang(kind: str, run: Path, step: int) -> None:
    """Does not return, or, if the process is continued, not soon."""
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "loop":
        while True:
            pass
    elif kind == "held":
        ctypes.PyDLL(None).sleep(3600)
    elif kind == "disk":
        os.mkfifo(run / "images.npy")
        if step % 2:  # the folder of reports is on the same file server
            (run / f"hang-{step}").mkdir()
            for name in ("report.txt", "reports.json", *(f"rank-{rank}.txt" for rank in range(4))):
                os.mkfifo(run / f"hang-{step}" / name)
        (run / "images.npy").read_bytes()


SKIPPED: dict[str, tuple[str, Callable[..., Any]]] = {
    "skipped sum": ("all_reduce_sum_", lambda context, value: value),
    "skipped gather": ("gather", lambda context, value: value.repeat(context.size, *[1] * (value.dim() - 1))),
    "skipped gradients": ("_backward_and_reduce", lambda context, loss: None),
}


def inject(fault: dict[str, Any], run: Path) -> None:
    """Patches this process, which is the rank to hurt."""
    from resnet_cifar.data import loader
    from resnet_cifar.distributed.context import DistributedContext
    from resnet_cifar.distributed.watchdog import Watchdog

    kind, due = fault["kind"], fault["step"]
    sample_indices, check_stop = loader.sample_indices, Watchdog.check_stop

    def sample(seed: int, images: int, batch_size: int, step: int, *more: Any) -> Any:
        if step == due + 1:
            hang(kind, run, due)
        return sample_indices(seed, images, batch_size, step, *more)

    def skip_in(self: Watchdog, step: int | None = None) -> None:
        nonlocal due
        check_stop(self, step)
        is_due = self._step >= due >= 0 and (step is None) == (kind == "skipped gather")
        if is_due:
            due = -1
            skip_next(*SKIPPED[kind])

    def skip_next(name: str, instead: Callable[..., Any]) -> None:
        original = getattr(DistributedContext, name)

        def skip(context: DistributedContext, *arguments: Any, **named: Any) -> Any:
            setattr(DistributedContext, name, original)
            return instead(context, *arguments, **named)

        setattr(DistributedContext, name, skip)

    if kind.startswith("skipped"):
        Watchdog.check_stop = skip_in
    else:
        loader.sample_indices = sample


def train(fault: dict[str, Any], rank: int, port: int, folder: Path) -> None:
    """One rank, in a process of its own; never returns."""
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": fault["processes"], "MASTER_PORT": port}
        place |= {"LOCAL_WORLD_SIZE": fault["processes"], "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {name: str(value) for name, value in place.items()}
        if rank == fault["rank"]:
            inject(fault, folder / "RUN")
        options = {**RECIPE, **BRIEF, "--run": folder / "RUN"}
        sys.argv = ["train.py", *(str(word) for pair in options.items() for word in pair)]
        from resnet_cifar.cli.entry import run_command

        os._exit(run_command("train"))
    except SystemExit as request:
        os._exit(request.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


class World:
    """One run that hangs."""

    def __init__(self, fault: dict[str, Any], folder: Path) -> None:
        folder.mkdir()
        self.fault, self.folder, self.codes = fault, folder, {}
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.pids: dict[int, int] = {}
        for rank in range(fault["processes"]):
            pid = os.fork()
            if not pid:
                train(fault, rank, port, folder)
            self.pids[pid] = rank

    def is_over(self) -> bool:
        """Whether all ranks have ended, the hurt one by a signal once the others have: a launcher would send it."""
        for pid, rank in list(self.pids.items()):
            if rank not in self.codes and os.waitpid(pid, os.WNOHANG)[0]:
                self.codes[rank] = 1
        left = [pid for pid, rank in self.pids.items() if rank not in self.codes]
        if [self.pids[pid] for pid in left] == [self.fault["rank"]]:
            os.kill(left[0], signal.SIGKILL)
        return not left

    def end(self) -> None:
        """Kills what is left."""
        for pid, rank in self.pids.items():
            if rank not in self.codes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def found(self) -> dict[str, Any]:
        """What the run said and wrote."""
        said = [(self.folder / f"{rank}.err").read_text() for rank in range(self.fault["processes"])]
        errors = [line for text in said for line in text.splitlines() if line.startswith("error: ")]
        status = self.folder / "RUN" / "status.json"
        return {
            **self.fault,
            "errors": errors,
            "status": json.loads(status.read_text()) if status.is_file() else None,
            "folder": str(self.folder),
            "said": "" if len(errors) == 1 else "\n".join(said)[-4000:],
        }


def main(home: Path, plan: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs the plan's worlds, `AT_ONCE` of them at a time."""
    load_everything()
    running: list[World] = []
    found: list[dict[str, Any]] = []
    todo = list(enumerate(plan))
    try:
        while todo or running:
            while todo and len(running) < AT_ONCE:
                number, fault = todo.pop(0)
                running.append(World(fault, home / f"world{number}"))
            for world in [world for world in running if world.is_over()]:
                running.remove(world)
                found.append(world.found())
            time.sleep(0.05)
    finally:
        for world in running:
            world.end()
    return found


def load_everything() -> None:
    """What every process needs; none of it is garbage, which Accelerate collects whenever a stage begins."""
    import scipy.special  # noqa: F401
    import timm  # noqa: F401

    import resnet_cifar.cli.train
    import resnet_cifar.training.trainer  # noqa: F401

    gc.freeze()


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), json.load(sys.stdin))))

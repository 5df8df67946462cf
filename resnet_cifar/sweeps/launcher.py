"""Starts training in processes of its own."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import psutil

from resnet_cifar import wandb_env
from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed import launcher_env
from resnet_cifar.distributed.signals import EXIT_RESUBMIT, SIGNALS

_ROOT = Path(__file__).parents[2]
GPU_PRECISION = "bf16"  # of accelerate_configs/multi_gpu.yaml
_POLL = 1.0  # seconds between checks of a run
_SHELL_SIGNALS = 128  # a shell's exit code of a command that a signal has ended is this and the signal's number
_MAX_GROUP = 128  # characters of a group that W&B accepts


def train_program() -> list[str]:
    """The arguments of Python, or of a launcher, that train: train.py of a checkout, else the installed package."""
    script = _ROOT / "train.py"
    return [str(script)] if script.is_file() else ["-m", "resnet_cifar", "train"]


def finished(run: RunDir, recipe: Recipe, extends: bool = False) -> dict[str, Any] | None:
    """The result if the run has finished all of the recipe's phases. Raises UserError if it belongs to another recipe.

    `extends`: see `RunDir.check`.
    """
    file = run.path / "recipe.yaml"
    if file.is_file():
        from resnet_cifar.training import preflight  # imports timm, which takes seconds and is not needed for a new run

        recipe = preflight.resolve(recipe)
        if recipe.precision == "auto":  # resolved by the launcher
            recipe = dataclasses.replace(recipe, precision=read_recipe(str(file)).precision)
    run.check(recipe, extends)
    return run.finished(recipe)


def launch_words(processes: int) -> list[str]:
    """The arguments of Python that start this number of processes of the program that follows, on this machine."""
    if processes == 1:
        return []
    import torch

    has_gpu = torch.cuda.is_available()
    config = _ROOT / "accelerate_configs" / f"{'multi_gpu' if has_gpu else 'cpu_ddp'}.yaml"
    # accelerate starts several processes on a CPU only if it is asked for GPUs, which are then hidden.
    flags = (
        ["--multi_gpu", "--mixed_precision", GPU_PRECISION] if has_gpu else ["--cpu", "--multi_gpu", "--gpu_ids", "-1"]
    )
    settings = ["--config_file", str(config)] if config.is_file() else flags
    return ["-m", "accelerate.commands.launch", *settings, "--num_processes", str(processes)]


def start(
    words: Sequence[str], processes: int, quiet: bool, program: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> subprocess.Popen:
    """Starts training with `words` and this number of processes on this machine, in a new session.

    `program`: what is started in place of `train_program`; `env`: more variables of its environment.

    Signals therefore reach it only from the caller; when the caller ends, the run saves and stops. Its standard error
    is a text pipe, and with `quiet` its standard output too.
    """
    command = [sys.executable, *launch_words(processes), *(program or train_program()), *words]
    return subprocess.Popen(
        command,
        env={**os.environ, **launcher_env.follower_env(), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


class Launcher:
    """Starts training through a launcher, one run after the other, and forwards signals. `stopped`: got one.

    Of SIGUSR1 and SIGTERM only the first is forwarded, since a second signal ends training before it has saved: SLURM
    sends SIGTERM to a job that may already be saving.
    """

    def __init__(self, launch: str) -> None:
        self.stopped = False
        self._group: dict[str, str] = {}
        self._command = [*shlex.split(launch), *train_program()]
        self._process: subprocess.Popen | None = None
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._forward)

    def share_group(self, name: str, tag: str) -> None:
        """Names the W&B group and the tag of all runs that follow, unless the user's variables name others."""
        shared = {"WANDB_RUN_GROUP": name[:_MAX_GROUP], "WANDB_TAGS": tag}
        self._group = {variable: value for variable, value in shared.items() if not os.environ.get(variable)}

    def run(
        self,
        run: RunDir,
        words: Sequence[str],
        output: BinaryIO | None = None,
        should_end: Callable[[], bool] = lambda: False,
    ) -> str:
        """Trains in the run's directory with `words`; returns `finished`, `interrupted`, `killed` or `failed`.

        `killed`: a signal ended one of its processes, such as the kernel's when memory runs out. Launchers hide exit
        codes, so the state is read from the directory. `output` receives what the process prints; the process is
        terminated when `should_end` returns True. Raises UserError if the launcher cannot be started.
        """
        started = time.time()
        code = self._wait([*self._command, *words, "--run", str(run.path)], output, should_end)
        if run.result() is not None:
            return "finished"
        status = read_json(run.path / "status.json") or {}
        state = status["state"] if status.get("time", 0) >= started else ""
        if self.stopped or code == EXIT_RESUBMIT or state == "interrupted":
            return "interrupted"
        return "killed" if code < 0 or code > _SHELL_SIGNALS or state in ("running", "lost") else "failed"

    def pause(self) -> bool:
        """Waits for a moment; returns whether no signal has come."""
        time.sleep(_POLL)
        return not self.stopped

    def _wait(self, command: Sequence[str], output: BinaryIO | None, should_end: Callable[[], bool]) -> int:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        errors = subprocess.STDOUT if output else None
        # If this process is killed, the run saves and stops, so that a rerun finds it free.
        env = {**os.environ, **self._group, "PATH": path, **launcher_env.follower_env()}
        try:
            self._process = subprocess.Popen(command, env=env, stdout=output, stderr=errors)
        except OSError as error:
            raise UserError(f"--launch {command[0]!r} cannot be started ({error.strerror}): name a launcher") from None
        if self.stopped:  # while it was being started
            self._signal(signal.SIGTERM)
        is_ending = False
        while True:
            try:
                return self._process.wait(_POLL)
            except subprocess.TimeoutExpired:
                if not is_ending and should_end():
                    self._signal(signal.SIGTERM)
                    is_ending = True

    def _forward(self, number: int, frame: FrameType | None) -> None:
        is_first, self.stopped = not self.stopped, True
        if self._process is not None and (is_first or number not in (signal.SIGUSR1, signal.SIGTERM)):
            self._signal(number)

    def _signal(self, number: int) -> None:
        """Signals the processes of a launcher that gives each a session of its own; any other one gets it itself.

        Such a launcher (torch's elastic one, which accelerate uses) would die of SIGUSR1 and kill its processes some
        time after SIGTERM, whether they have saved or not; it ends well after they have ended. W&B's service, which has
        a session of its own, too, would end and take the run's curves with it.
        """
        try:
            below = psutil.Process(self._process.pid).children(recursive=True)
            leaders = [each for each in below if os.getsid(each.pid) == each.pid and each.name() != wandb_env.SERVICE]
            for process in leaders or [self._process]:
                process.send_signal(number)
        except (psutil.Error, ProcessLookupError):  # one has just ended
            self._process.send_signal(number)

"""Starts of train.py in processes of their own: where it lies, whether it still has to be started, and how."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from resnet_cifar.atomic_io import read_json
from resnet_cifar.checkpoints.run_dir import RunDir
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed import launcher_env
from resnet_cifar.distributed.signals import EXIT_RESUBMIT, SIGNALS

_LOOK = 1.0  # seconds between looks at a run


def script() -> Path:
    """train.py of this checkout. Raises UserError where the package was installed without it."""
    found = Path(__file__).parents[2] / "train.py"
    if not found.is_file():
        raise UserError(f"{found} is not there, and starts every run: install with pip install -e from a checkout")
    return found


def finished(run: RunDir, recipe: Recipe, extends: bool = False) -> dict[str, Any] | None:
    """The result of the finished run of all of the recipe's phases, or None. Raises UserError where it is another's.

    `extends`: see `RunDir.check`.
    """
    file = run.path / "recipe.yaml"
    if file.is_file():
        from resnet_cifar.training import preflight  # timm takes seconds, and a new run does not need it here

        recipe = preflight.resolve(recipe)
        if recipe.precision == "auto":  # what the launcher made of it is the launcher's to compare
            recipe = dataclasses.replace(recipe, precision=read_recipe(str(file)).precision)
    run.check(recipe, extends)
    return run.finished(recipe)


def start(words: Sequence[str], processes: int, quiet: bool) -> subprocess.Popen:
    """Starts train.py with these words on so many processes of this machine, in a session of its own.

    So a signal reaches it once, from whoever started it; when that one ends, the run stops saved. Its standard error is
    a pipe of text, and where `quiet` its standard output too. Raises UserError.
    """
    command = [sys.executable, str(script()), *words]
    if processes > 1:
        import torch

        kind = "multi_gpu" if torch.cuda.is_available() else "cpu_ddp"
        config = script().parent / "accelerate_configs" / f"{kind}.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", str(processes)]
        command[1:1] = launcher
    return subprocess.Popen(
        command,
        env={**os.environ, **launcher_env.follower_env()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )


class Launcher:
    """Starts train.py through a launcher, one after the other, and hands signals on; `stopped`: whether there was one.

    Raises UserError where there is no train.py.
    """

    def __init__(self, launch: str) -> None:
        self.stopped = False
        self._command = [*shlex.split(launch), str(script())]
        self._process: subprocess.Popen | None = None
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._hand_on)

    def run(
        self,
        run: RunDir,
        words: Sequence[str],
        output: BinaryIO | None = None,
        is_hopeless: Callable[[], bool] = lambda: False,
    ) -> str:
        """Starts train.py with `words` in the run's folder, and how it ended: `finished`, `interrupted` or `failed`.

        Launchers hide exit codes, so the folder is asked. What it prints goes to `output`, and it is asked to end when
        `is_hopeless` says so. Raises UserError where the launcher cannot be started.
        """
        began = time.time()
        code = self._wait([*self._command, *words, "--run", str(run.path)], output, is_hopeless)
        if run.result() is not None:
            return "finished"
        status = read_json(run.path / "status.json") or {}
        says_interrupted = status.get("state") == "interrupted" and status["time"] >= began
        return "interrupted" if self.stopped or code == EXIT_RESUBMIT or says_interrupted else "failed"

    def _wait(self, command: Sequence[str], output: BinaryIO | None, is_hopeless: Callable[[], bool]) -> int:
        here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        errors = subprocess.STDOUT if output else None
        # Where this process is killed, the run stops saved, and whoever starts it again finds it alone.
        env = {**os.environ, "PATH": here, **launcher_env.follower_env()}
        try:
            self._process = subprocess.Popen(command, env=env, stdout=output, stderr=errors)
        except OSError as error:
            raise UserError(f"--launch {command[0]!r} cannot be started ({error.strerror}): name a launcher") from None
        if self.stopped:  # while it was being started
            self._process.send_signal(signal.SIGTERM)
        asked = False
        while True:
            try:
                return self._process.wait(_LOOK)
            except subprocess.TimeoutExpired:
                if not asked and is_hopeless():
                    self._process.send_signal(signal.SIGTERM)
                    asked = True

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._process is not None:
            self._process.send_signal(number)

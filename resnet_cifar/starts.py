"""Starts of train.py in processes of their own: where it lies, whether it still has to be started, and how."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_cifar import cli
from resnet_cifar.recipe import Mistake, Recipe
from resnet_cifar.run_folder import RunFolder
from resnet_cifar.training import launched


def script() -> Path:
    """train.py of this checkout. Raises Mistake where the package was installed without it."""
    found = Path(__file__).parents[1] / "train.py"
    if not found.is_file():
        raise Mistake(f"{found} is not there, and starts every run: install with pip install -e from a checkout")
    return found


def finished(run: RunFolder, recipe: Recipe, extends: bool = False) -> dict[str, Any] | None:
    """The result of the finished run of all of the recipe's phases, or None. Raises Mistake where it is another's.

    `extends`: see `RunFolder.check`.
    """
    file = run.path / "recipe.yaml"
    if recipe.precision == "auto" and file.is_file():  # what the launcher made of it is the launcher's to compare
        recipe = dataclasses.replace(recipe, precision=cli.read_recipe(str(file)).precision)
    run.check(recipe, extends)
    return run.finished(recipe)


def start(words: Sequence[str], processes: int, quiet: bool) -> subprocess.Popen:
    """Starts train.py with these words on so many processes of this machine, in a session of its own.

    So a signal reaches it once, from whoever started it; when that one ends, the run stops saved. Its standard error is
    a pipe of text, and where `quiet` its standard output too. Raises Mistake.
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
        env={**os.environ, launched.FOLLOWER: str(os.getpid())},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )

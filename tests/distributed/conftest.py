"""Starting several processes the way a user does."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Everything that draws, mixes, cuts and clips is on; first the head learns, then all, and an average follows. 12 rows
# of 4 processes are three micro-batches. An epoch is 30.1 steps: batches straddle its end, and metrics.jsonl has a row
# every second step.
WHOLE = {
    "--recipe": "debug",
    "--track.report": False,
    "--precision": "fp64",
    "--data.limit": 1605,
    "--data.image_size": 16,
    "--augment.flip": "random",
    "--batch_size": 48,
    "--micro_batch": 4,
    "--model.ghost_batch_size": 4,
    "--model.ema_decay": 0.9,
    "--phases.0.epochs": 1.1,
    "--phases.0.trainable": "head",
    "--phases.1.epochs": 0.95,
    "--evaluate.every_epochs": 0.7,
    "--checkpoint.every_steps": 9,
    "--checkpoint.keep_last": 3,
}


# A size that no ViT takes, and a deep head. Without its BatchNorm, which over 4 rows turns rounding into 1e-9:
# test_world_sizes has that, over 8.
ONES_OWN = {
    "--phases.0.image_size": 24,
    "--model.head.hidden_dims": "24,16",
    "--model.head.dropout": 0.4,
    "--data.sampling": "balanced",
    "--loss.class_weights": "1,2,3,4,5,6,7,8,9,10",
    "--evaluate.select_by": "macro_f1",
}


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.CompletedProcess]:
    """`accelerate launch --config_file accelerate_configs/CONFIG.yaml ... SCRIPT ARGUMENTS` in folder `cwd`."""

    def accelerate(
        cwd: Path, *words: object, config: str = "cpu_ddp", processes: int | None = None, env: dict | None = None
    ) -> subprocess.CompletedProcess:
        chosen = ["--config_file", str(ROOT / "accelerate_configs" / f"{config}.yaml")] if config else []
        chosen += ["--num_processes", str(processes)] if processes else []
        command = [sys.executable, "-m", "accelerate.commands.launch", *chosen, *map(str, words)]
        return subprocess.run(
            command,
            check=False,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return accelerate


@pytest.fixture(scope="session")
def train(launch) -> Callable[..., subprocess.CompletedProcess]:
    """Starts the run WHOLE of `model` in folder `cwd`; `before`: a script and its own words,
    instead of train.py."""

    def start(cwd: Path, model: str, processes: int, *before: object) -> subprocess.CompletedProcess:
        own = ONES_OWN if model == "test_resnet" else {}
        options = {**WHOLE, **own, "--model.name": model, "--track.trackers": "wandb" if processes == 2 else "none"}
        words = (word for pair in options.items() for word in pair)
        config = "cpu" if processes == 1 else "cpu_ddp"
        return launch(cwd, *(before or [ROOT / "train.py"]), *words, config=config, processes=processes)

    return start


@pytest.fixture(scope="session")
def whole(tmp_path_factory, train) -> Callable[[str, int], Path]:
    """The run directory of WHOLE of a model, trained by this many processes without a stop; made once."""

    @functools.cache
    def folder(model: str, processes: int) -> Path:
        cwd = tmp_path_factory.mktemp(f"{model}-{processes}")
        finished = train(cwd, model, processes)
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert finished.stdout.count("Finished in") == 1, "other ranks are silent"
        (run,) = (cwd / "runs").iterdir()
        return run

    return folder

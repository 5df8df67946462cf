"""Starting several processes the way a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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

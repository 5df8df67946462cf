"""Seconds from train.py's start to the beginning of its first step, the images cached."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from resnet_cifar.data import store
from resnet_cifar.recipe import Data

ROUNDS = 5
TRAIN = Path(__file__).parents[1] / "train.py"


def measure(source: str) -> dict[str, Any]:
    """The median and all rounds, of ResNet-50 on every image of `source`; each run is ended at its first step."""
    store.ensure(Data(source=source))
    seconds = [_start(source) for _ in range(ROUNDS)]
    return {"seconds_to_first_step": statistics.median(seconds), "rounds": seconds}


def _start(source: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["--recipe", "scratch", "--data.source", source, "--run", str(run), "--track.to", "none"]
        process = subprocess.Popen([sys.executable, str(TRAIN), *words], stdout=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                if (run / "status.json").is_file():
                    return json.loads((run / "status.json").read_text())["seconds_to_first_step"]
                time.sleep(0.05)
            raise SystemExit(f"train.py ended with {process.returncode} before its first step")
        finally:
            process.kill()
            process.wait()

"""Seconds from train.py's start to the beginning of its first step: cold, with an empty cache, and warm."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import read_json

TRAIN = Path(__file__).parents[1] / "train.py"


def measure(source: str, cold: int = 2, warm: int = 5, model: str = "resnet50") -> dict[str, Any]:
    """Medians and all rounds, of `scratch` on every image of `source`; each run is ended at its first step.

    Cold, the images are decoded (a data set of the hub has been fetched before); warm, they are read from the cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        caches = [Path(folder) / f"cache-{number}" for number in range(cold)]
        rounds = {
            "cold": [_start(source, cache, model) for cache in caches],
            "warm": [_start(source, caches[-1], model) for _ in range(warm)],
        }
    return {"seconds_to_first_step": {name: statistics.median(times) for name, times in rounds.items()}, **rounds}


def _start(source: str, cache: Path, model: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = ["--recipe", "scratch", "--data.source", source, "--run", str(run), "--track.trackers", "none"]
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *words, "--model.name", model],
            env={**os.environ, "RESNET_CIFAR_CACHE": str(cache)},
            stdout=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None:
                # The status is there before the first step, which may be compiled first.
                if seconds := (read_json(run / "status.json") or {}).get("seconds_to_first_step"):
                    return seconds
                time.sleep(0.05)
            raise SystemExit(f"train.py ended with {process.returncode} before its first step")
        finally:
            process.kill()
            process.wait()

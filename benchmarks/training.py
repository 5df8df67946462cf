"""ResNet-50 training and evaluation: images/s, shares of the bare step and of the device's peak, and peaks of memory.

32 pixels with a CIFAR stem are the recipe `scratch`, the others `finetune` with random weights; each configuration is a
process of its own (benchmarks/step.py), compiled as `accelerate launch --dynamo_backend inductor` does it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.step import Configuration

ROOT = Path(__file__).parents[1]
LIMIT = 400  # seconds of one configuration; compiling takes most of it
_SHAPES = (("scratch", "cifar", 32), ("finetune", "imagenet", 224), ("finetune", "imagenet", 128))
_SMALL = ("finetune", "imagenet", 32)
NO_224 = "a step of 32 images takes a CPU about ten seconds"


def configurations() -> list[Configuration]:
    """Those that make sense on this device, the most telling first: what a limit on the time leaves out comes last."""
    if torch.cuda.is_available():
        # BatchNorm's groups are a loop, so compiling and launching grow with the batch: the recipes' 256.
        shapes = [(*shape, 256) for shape in (*_SHAPES, _SMALL)]
        half = ("bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp16",)
        eager = [Configuration(*shape, precision) for precision in (*half, "no") for shape in shapes]
        compiled = [Configuration(*shape, precision, True) for precision in (*half, "no") for shape in shapes]
        # The first compiled ones before the eager ones of other precisions.
        return [*eager[:4], *compiled[:2], *eager[4:], *compiled[2:]]
    return [
        Configuration(*_SMALL, 128, "no", seconds=1.5),
        Configuration(*_SMALL, 128, "bf16", seconds=1.5),
        *(Configuration(*shape, 32, "no", rounds=5) for shape in _SHAPES),
        Configuration(*_SMALL, 32, "no", seconds=1.5),
        Configuration(*_SMALL, 32, "no", compiled=True, seconds=1.5),
    ]


def measure(source: str, deadline: float, chosen: Iterable[Configuration]) -> Iterator[dict[str, Any]]:
    """What each configuration measured, as it is done, or why it could not be: {..., "left_out": why}.

    deadline: a time of time.monotonic() after which none is begun.
    """
    for configuration in chosen:
        if configuration.image_size == 224 and not torch.cuda.is_available():
            yield {**asdict(configuration), "left_out": NO_224}
            continue
        left = min(LIMIT, deadline - time.monotonic())
        if left < 10:
            yield {**asdict(configuration), "left_out": "no time was left"}
            continue
        print(f"  {configuration}", flush=True)
        yield _in_a_process(configuration, source, left)


def _in_a_process(configuration: Configuration, source: str, limit: float) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_DYNAMO_")}
    # Packages may be on PYTHONPATH, too: on machines where nothing can be installed.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if configuration.compiled:
        environment["ACCELERATE_DYNAMO_BACKEND"] = "INDUCTOR"
    asked = json.dumps({"configuration": asdict(configuration), "source": source})
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.step", asked],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # inductor compiles in processes of its own
    )
    try:
        out, error = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return {**asdict(configuration), "left_out": f"it was not done within {limit:.0f} s"}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        lines = error.strip().splitlines() or [f"exit code {process.returncode}"]
        return {**asdict(configuration), "left_out": "it failed", "error": lines[-1]}
    return json.loads(out.splitlines()[-1])

"""The environment of a run: versions, hardware, command. Device and threads determine the last bits of a result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate", "datasets", "wandb", "numpy", "safetensors", "resnet-cifar"),
    *("onnx", "onnxscript", "onnxruntime"),
)

_MAX_DIFF = 2**20  # bytes


def describe() -> dict[str, Any]:
    """The content of environment.json."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(sys.argv),
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit if the code runs from a git checkout, with `-dirty` if files were changed; otherwise None."""
    found = _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    return None if found is None else found.decode().strip()


def code_diff() -> bytes:
    """The uncommitted changes of the checkout's tracked files, for `git apply`; empty without any or beyond 1 MiB."""
    found = _git("diff", "HEAD", "--no-color", "--no-ext-diff") or b""
    return found if len(found) <= _MAX_DIFF else b""


def _git(*words: str) -> bytes | None:
    """What git prints in the directory of this package; None if it fails or there is no git."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())

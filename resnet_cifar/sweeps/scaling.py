"""Starts `resnet-cifar scale --launched` on several numbers of processes of this machine, one after the other."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import torch

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed import launcher_env
from resnet_cifar.sweeps import launcher
from resnet_cifar.training import scaling_results
from resnet_cifar.training.plan import check_batch_size

_PROGRAM = ("-m", "resnet_cifar", "scale", "--launched")


def devices_here() -> int:
    """GPUs of this machine, or cores if there is none."""
    return len(os.sched_getaffinity(0)) if launcher_env.on_cpu() else torch.cuda.device_count()


def possible_counts(recipe: Recipe) -> list[int]:
    """Powers of two up to this machine's devices over which the batch divides; at least 1."""

    def divides(processes: int) -> bool:
        try:
            check_batch_size(recipe, processes)
        except UserError:
            return False
        return True

    return [1, *(2**power for power in range(1, devices_here().bit_length()) if divides(2**power))]


def check(recipe: Recipe, counts: Sequence[int], out: Path) -> None:
    """Raises UserError where the batch does not divide, GPUs are missing, or `out` holds another recipe's results."""
    for processes in counts:
        check_batch_size(recipe, processes)
    if not launcher_env.on_cpu() and max(counts) > devices_here():
        raise UserError(
            f"--processes {max(counts)} is more than the {devices_here()} GPUs of this machine: lower it, or measure "
            "several machines with sbatch slurm/scale.sh"
        )
    scaling_results.read_kept(out, recipe)


def measure_each(counts: Sequence[int], words: Sequence[str]) -> None:
    """Runs `resnet-cifar scale --launched` with `words` on each number of processes. Raises UserError if one fails.

    On CPUs each process gets the threads that the largest number leaves it, so that only communication differs. On
    GPUs one process, which needs no launcher, gets the precision that accelerate_configs/multi_gpu.yaml gives several.
    """
    if launcher_env.on_cpu():
        env = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, devices_here() // max(counts))))}
    else:
        env = {"ACCELERATE_MIXED_PRECISION": launcher.GPU_PRECISION}
    for processes in counts:
        process = launcher.start(words, processes, quiet=False, program=_PROGRAM, env=env)
        try:
            errors = process.communicate()[1]
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                process.wait()
        if process.returncode:
            said = re.findall(r"^error: (.*)$", errors, re.MULTILINE) or errors.strip().splitlines()[-1:]
            raise UserError(f"{said[0] if said else f'{processes} processes ended with {process.returncode}'}")

"""What the launcher asked for, read from the environment, and whether it started that."""

from __future__ import annotations

import os
import socket

import psutil

from resnet_cifar.config.errors import NodeError, UserError

# Environment variable: HOST:PID of the process that monitors this run (a notebook or a search).
FOLLOWER = "RESNET_CIFAR_FOLLOWER"
_SEVERAL = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def by_accelerate() -> bool:
    """Whether `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def by_elastic() -> bool:
    """Whether torch's elastic launcher started this process, directly or for `accelerate launch`."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def follower_env() -> dict[str, str]:
    """The environment variable that names this process as the one that monitors a run."""
    return {FOLLOWER: f"{socket.gethostname()}:{os.getpid()}"}


def follower_is_gone() -> bool:
    """Whether the process that monitors this run has ended, if it runs on this machine."""
    host, _, number = os.environ.get(FOLLOWER, "").rpartition(":")
    return host == socket.gethostname() and not psutil.pid_exists(int(number))


def restart_count() -> int:
    """How often the elastic launcher has restarted all processes (--max_restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def wants_cpu() -> bool:
    """Whether the launcher keeps this run off the GPUs."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def on_cpu() -> bool:
    """Whether this process uses the CPU: the launcher asks for it, or torch finds no GPU."""
    import torch  # takes a second, which most callers do not need

    return wants_cpu() or not torch.cuda.is_available()


def resolve_precision(precision: str) -> tuple[str, str]:
    """(the precision, why) for a recipe's `precision`; `auto` is the launcher's, or else what suits the device.

    `accelerate launch` passes `no` by default, so `no` counts as not asking for anything. Raises UserError.
    """
    if precision != "auto":
        return precision, "as the recipe says"
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", "bf16", "fp16"):
        raise UserError(f"--mixed_precision {asked} of accelerate launch is not supported: use no, bf16 or fp16")
    if asked != "no":
        return asked, "auto: accelerate launch asks for it"
    if on_cpu():
        return "no", "auto: float32 on a CPU"
    import torch

    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "auto: this GPU computes it natively; --precision no is float32"
    return "no", "auto: this GPU has no bfloat16; --precision fp16 is faster"


def check_environment(on_cpu: bool) -> None:
    """Raises UserError where the launcher's settings contradict each other or the machine."""
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        raise UserError(
            f"gradient_accumulation_steps {accumulation} of accelerate launch would change the batch: leave it at 1, "
            "micro_batch splits a batch to fit the memory"
        )
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = devices is not None and devices.split(",")[0].strip() in ("", "-1")  # accelerate_configs/cpu_ddp.yaml
    asked_for_gpu = by_accelerate() and not wants_cpu() and not hidden and (several or bool(devices))
    if on_cpu and asked_for_gpu:
        raise NodeError(
            "accelerate launch was configured for GPUs and this machine has none that torch can use: use "
            f"--config_file accelerate_configs/{'cpu_ddp' if several else 'cpu'}.yaml, or check the driver (nvidia-smi)"
        )
    if by_accelerate() and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        # `accelerate launch --cpu --num_processes 2` starts one process and sets only the address.
        raise UserError(
            "accelerate launch was asked for several processes and started one: use --config_file "
            "accelerate_configs/cpu_ddp.yaml (or multi_gpu.yaml), which start them"
        )


def check_world_size(size: int) -> None:
    """Raises UserError where several processes were started without knowing of each other."""
    for variable in _SEVERAL:
        asked = int(os.environ.get(variable) or 1)
        if asked > 1 and size == 1:
            raise UserError(
                f"{variable} says {asked} processes, and each believes that it is alone: start them with accelerate "
                "launch (accelerate_configs/) so that they find each other"
            )

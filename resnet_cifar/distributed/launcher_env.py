"""What the launcher asked for: read from the environment and checked before Accelerate reads it.

Accelerate converts these variables one by one, wherever it needs them: an empty or leftover one ends in a traceback, or
in processes that wait for each other.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass

from resnet_cifar.config.errors import NodeError, UserError
from resnet_cifar.distributed.launch_origin import file_names_gpus, launch_command, origin

# Environment variable: HOST:PID of the process that monitors this run (a notebook or a search).
FOLLOWER = "RESNET_CIFAR_FOLLOWER"
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
# What other launchers (SLURM, Open MPI, MPICH, Intel MPI, MVAPICH) set in each of several processes.
_SEVERAL = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_MPI = (
    *("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    *(f"{mpi}_COMM_WORLD_{what}" for mpi in ("OMPI", "MV2") for what in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")),
)
_FLAGS = ("USE_CPU", "DEBUG_MODE", "CPU_AFFINITY", "DYNAMO_USE_FULLGRAPH", "DYNAMO_USE_DYNAMIC")
_FLAGS = (*(f"ACCELERATE_{name}" for name in (*_FLAGS, "DYNAMO_USE_REGIONAL_COMPILATION")), "FORK_LAUNCHED")
_YES, _NO = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")  # as Accelerate reads them
# Beginnings of names. An empty CUDA_VISIBLE_DEVICES is not among them: it hides all GPUs.
_MAY_BE_EMPTY = (*_PLACE, "GROUP_RANK", "MASTER_", "TORCHELASTIC_", "OMP_NUM_THREADS", "FORK_LAUNCHED")
_MAY_BE_EMPTY += ("PMI_", "MPI_", "OMPI_", "MV2_", "SLURM_", "ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
_MAY_BE_EMPTY += ("HF_", "TRANSFORMERS_OFFLINE", "XDG_CACHE_HOME", "WANDB_", "TRACKIO_", "RESNET_CIFAR_")
# What would split the model or replace the training step: variable, flag of accelerate launch, name.
_PLUGINS = (
    ("ACCELERATE_USE_FSDP", "--use_fsdp", "FSDP"),
    ("ACCELERATE_USE_DEEPSPEED", "--use_deepspeed", "DeepSpeed"),
    ("ACCELERATE_USE_MEGATRON_LM", "--use_megatron_lm", "Megatron-LM"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG", "--use_parallelism_config", "tensor, context or sequence parallelism"),
    ("ACCELERATE_USE_TP", "--use_tp", "tensor parallelism"),
    ("ACCELERATE_USE_SAGEMAKER", "", "SageMaker's data parallelism"),
)
_PRECISIONS = ("no", "bf16", "fp16")
_COMPILERS = {
    "ACCELERATE_DYNAMO_BACKEND": ("no", "eager", "aot_eager", "inductor", "cudagraphs"),
    "ACCELERATE_DYNAMO_MODE": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}


@dataclass(frozen=True)
class Place:
    """Which of several processes this one is, and where they meet."""

    rank: int
    size: int
    host: str
    port: int

    @property
    def address(self) -> str:
        """HOST:PORT (WORLD_SIZE=2)."""
        return f"{self.host}:{self.port} (WORLD_SIZE={self.size})"


def by_accelerate() -> bool:
    """Whether `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ and "ACCELERATE_DYNAMO_MODE" in os.environ


def by_elastic() -> bool:
    """Whether torch's elastic launcher started this process, directly or for `accelerate launch`."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_reported_elsewhere(variable: str = "RANK") -> bool:
    """Whether the process whose `variable` is 0 is known to exist, and prints what concerns all of them.

    A RANK left over in a shell tells nothing: the launcher started the others, or they have met this one.
    """
    # A signal may come while another thread imports torch: until that is done, no processes have met.
    is_initialized = getattr(sys.modules.get("torch.distributed"), "is_initialized", None)
    have_met = is_initialized is not None and is_initialized()
    return os.environ.get(variable, "0") not in ("0", "") and (by_elastic() or have_met)


def follower_env() -> dict[str, str]:
    """The environment variable that names this process as the one that monitors a run."""
    return {FOLLOWER: f"{socket.gethostname()}:{os.getpid()}"}


def follower_is_gone() -> bool:
    """Whether the process that monitors this run has ended, if it runs on this machine."""
    import psutil

    host, _, number = os.environ.get(FOLLOWER, "").rpartition(":")
    if host != socket.gethostname():
        return False
    try:  # one that nobody has waited for, as in a container without an init, still has its number
        return psutil.Process(int(number)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def restart_count() -> int:
    """How often the elastic launcher has restarted all processes (--max_restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def wants_cpu() -> bool:
    """Whether the launcher keeps this run off the GPUs."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in _YES


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
    _check_precision()
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked != "no":
        return asked, "auto: accelerate launch asks for it"
    if on_cpu():
        return "no", "auto: float32 on a CPU"
    import torch

    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "auto: this GPU computes it natively; --precision no is float32"
    return "no", "auto: this GPU has no bfloat16; --precision fp16 is faster"


def unset_empty_variables() -> None:
    """An empty variable of a launcher, the hub or a tracker is an unset one; they themselves disagree on that."""
    for name in [name for name, value in os.environ.items() if not value.strip() and name.startswith(_MAY_BE_EMPTY)]:
        del os.environ[name]


def check_launcher() -> None:
    """Raises UserError where the launcher's variables contradict each other or ask for what is not supported."""
    unset_empty_variables()
    for name in (*_PLACE, *_MPI, "SLURM_STEP_NUM_TASKS", "GROUP_RANK", "TORCHELASTIC_RESTART_COUNT"):
        _number(name)
    for name in _FLAGS:
        if (value := os.environ.get(name, "no")).lower() not in _YES + _NO:
            raise UserError(f"{name}={value} should be true or false: correct or unset it")
    _check_plugins()
    _check_precision()
    for name, known in _COMPILERS.items():
        if (value := os.environ.get(name, known[0])).lower() not in known:
            where, fix = origin(name, f"--{name.removeprefix('ACCELERATE_').lower()}")
            what = "backend" if name.endswith("BACKEND") else "mode"
            raise UserError(f"torch.compile's {what} {value} ({where}) is not one of {', '.join(known)}: {fix}")
    _check_place()


def place() -> Place | None:
    """Where several processes meet, after `check_launcher`; None for a single one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return None
    return Place(int(os.environ["RANK"]), size, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def _number(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    if not (value.strip().isascii() and value.strip().isdigit()):
        raise UserError(f"{name}={value} should be a whole number, 0 or more: unset it, or use accelerate launch")
    return int(value)


def _check_plugins() -> None:
    for name, flag, what in _PLUGINS:
        if os.environ.get(name, "no").lower() not in _NO:
            where, fix = origin(name, flag)
            raise UserError(f"{what} ({where}) is not supported: every process holds the whole model, as in DDP; {fix}")
    if device := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        raise UserError(
            f"ACCELERATE_TORCH_DEVICE={device} is not supported: unset it, and use accelerate launch --config_file "
            "accelerate_configs/cpu.yaml for the CPU or CUDA_VISIBLE_DEVICES=1 for the second GPU"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        where, fix = origin("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "--gradient_accumulation_steps")
        raise UserError(
            f"gradient_accumulation_steps {steps} ({where}) would change the batch: leave it at 1, micro_batch splits "
            f"a batch to fit the memory; {fix}"
        )


def _check_precision() -> None:
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked.lower() not in _PRECISIONS:
        where, _ = origin("ACCELERATE_MIXED_PRECISION", "--mixed_precision")
        raise UserError(
            f"--mixed_precision {asked} of accelerate launch ({where}) is not supported: use no, bf16 or fp16"
        )


def _check_place() -> None:
    """Raises UserError where the variables do not say which of how many processes this is, and where they meet."""
    given = {name: int(os.environ[name]) for name in _PLACE if name in os.environ}
    stated = " ".join(f"{name}={value}" for name, value in given.items())
    alone = f"unset {' '.join(given)} to use one process, or use accelerate launch, which sets all of them"
    if "WORLD_SIZE" not in given:
        if given:
            raise UserError(f"{stated} is set without WORLD_SIZE: {alone}")
        for name in _SEVERAL:
            if (asked := _number(name) or 1) > 1:
                raise UserError(
                    f"{name}={asked} says {asked} processes, and each believes that it is alone: start them with "
                    f"accelerate launch (accelerate_configs/) so that they find each other, or unset {name} if it is "
                    "left over"
                )
        return
    size, rank, local = given["WORLD_SIZE"], given.get("RANK", 0), given.get("LOCAL_RANK", 0)
    on_node = given.get("LOCAL_WORLD_SIZE", size)
    if size == 0:
        raise UserError(f"WORLD_SIZE=0 should be 1 or more: {alone}")
    if not (rank < size and local <= rank and local < on_node <= size):
        raise UserError(f"{stated} contradict each other: {alone}")
    if size == 1:  # one process needs no process group, which Accelerate would form with some of these
        for name in (*_PLACE, *_MPI):
            os.environ.pop(name, None)
        return
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise UserError(f"{stated} is set without {', '.join(missing)}: {alone}")
    _number("OMP_NUM_THREADS")
    if not 0 < (_number("MASTER_PORT") or 0) < 2**16:
        raise UserError(f"MASTER_PORT={os.environ['MASTER_PORT']} is no port: set it to a free one, 1024 to 65535")


def check_devices(on_cpu: bool) -> None:
    """Raises UserError where the launcher's settings contradict the machine."""
    several, launcher = place() is not None, launch_command()
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = devices is not None and devices.split(",")[0].strip() in ("", "-1")  # accelerate_configs/cpu_ddp.yaml
    may_use_gpu = by_accelerate() and not wants_cpu() and not hidden
    if on_cpu and may_use_gpu and (several or devices or file_names_gpus(launcher)):
        raise NodeError(
            "accelerate launch was configured for GPUs and this machine has none that torch can use: use "
            f"--config_file accelerate_configs/{'cpu_ddp' if several else 'cpu'}.yaml, or check the driver (nvidia-smi)"
        )
    if (
        by_accelerate()
        and not by_elastic()
        and "MASTER_ADDR" in os.environ.keys() - (launcher.environment if launcher else {})
    ):
        # `accelerate launch --cpu --num_processes 2` starts one process and sets only the address.
        where, _ = origin("MASTER_ADDR", "--num_processes")
        raise UserError(
            f"accelerate launch was asked for several processes ({where}) and started one: use --config_file "
            "accelerate_configs/cpu_ddp.yaml (or multi_gpu.yaml), which start them"
        )
    if not on_cpu and several:
        import torch

        found, local = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
        needed = max(local + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if needed > found:
            raise NodeError(
                f"LOCAL_RANK={local} of {needed} processes on this machine, which has {found} GPUs"
                f"{f' (CUDA_VISIBLE_DEVICES={devices})' if devices else ''}: start one process per GPU "
                f"(--num_processes {found})"
            )


def check_world_size(size: int) -> None:
    """Raises UserError where Accelerate found other processes than the launcher says."""
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != size:
        raise UserError(
            f"WORLD_SIZE={asked} says {asked} processes, and Accelerate has found {size}: start them with accelerate "
            "launch (accelerate_configs/) so that they find each other"
        )

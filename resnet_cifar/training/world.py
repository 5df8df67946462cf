"""Processes, devices and precision: the only module that imports accelerate."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from resnet_cifar.recipe import Mistake

_FOREVER = timedelta(days=30)
_SEVERAL = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


class World:
    """What the launcher started: this process's place, its device, and Accelerate behind a few plain verbs.

    `precision` is a recipe's; `auto` follows the launcher. Raises Mistake where what was found is not what was asked.
    """

    def __init__(self, precision: str) -> None:
        self.precision = _resolve(precision)
        on_cpu = _wants_cpu() or not torch.cuda.is_available()
        _check_launch(on_cpu)
        if on_cpu and self.precision == "fp16":
            raise Mistake("precision fp16 needs a GPU, and none was found: take no or bf16")
        if not on_cpu and self.precision == "bf16" and not torch.cuda.is_bf16_supported():
            raise Mistake(f"precision bf16 is not supported by {torch.cuda.get_device_name()}: take fp16 or no")
        mixed = self.precision if self.precision in ("bf16", "fp16") else "no"
        # Buffers are not broadcast (running statistics do not steer training) and gradients live in the buckets.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        self._accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed, kwargs_handlers=[ddp])
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes
        self.is_main: bool = self.rank == 0
        _check_found(self.size)
        self._store = (
            dist.PrefixStore("resnet_cifar", dist.distributed_c10d._get_default_store()) if self.size > 1 else None
        )
        self._turns = 0

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights and inputs."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def describe(self) -> str:
        """The device, and whether the launcher asked for torch.compile."""
        backend = self._accelerator.state.dynamo_plugin.backend.value.lower()
        compiled = f", compiled with {backend}" if backend != "no" else ""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}{compiled}"
        threads = torch.get_num_threads()
        return f"CPU ({threads} thread{'s' * (threads > 1)}){compiled}"

    def idle_threads(self) -> str | None:
        """A warning where the launcher left most cores of a CPU run idle."""
        cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
        if (
            self.device.type == "cuda"
            or self.size > 1
            or threads >= cores
            or "ACCELERATE_MIXED_PRECISION" not in os.environ
        ):
            return None
        return (
            f"OMP_NUM_THREADS={threads} leaves {cores - threads} of {cores} cores idle, and accelerate launch sets 1 "
            f"unless told otherwise: set OMP_NUM_THREADS={cores}, or leave it to accelerate_configs/cpu.yaml"
        )

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """fp16's loss scaler."""
        return self._accelerator.scaler

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Autocast, DDP and compile around `model`; rank 0's weights and buffers everywhere."""
        model.to(self.device)
        self.broadcast_(model)
        with warnings.catch_warnings():  # Accelerate knows DDP's older name of the argument only
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            return self._accelerator.prepare(model, optimizer)

    def prepare_to_score(self, model: nn.Module) -> nn.Module:
        """Autocast and compile around `model`, which will not be trained."""
        model.to(self.device)
        self.broadcast_(model)
        return self._accelerator.prepare_model(model, evaluation_mode=True)

    def broadcast_(self, model: nn.Module) -> None:
        """Gives every rank rank 0's weights and buffers."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's gradients, scaled where fp16 wants it."""
        self._accelerator.backward(loss)

    def reduce_gradients(self, model: nn.Module, now: bool) -> AbstractContextManager[Any]:
        """A context for forward and backward in which gradients are reduced over ranks only if `now`."""
        return nullcontext() if now else self._accelerator.no_sync(model)

    def mean(self, value: Tensor, weight: float) -> Tensor:
        """The mean of every rank's `value`, weighted by each rank's `weight`; the same on every rank."""
        if self.size == 1:
            return value
        total = torch.cat([value.flatten() * weight, torch.tensor([weight], dtype=value.dtype, device=value.device)])
        dist.all_reduce(total)
        return (total[:-1] / total[-1]).view_as(value)

    def sum_(self, value: Tensor) -> Tensor:
        """Sums over ranks in place, on the device, without waiting for it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def smallest_(self, value: Tensor) -> Tensor:
        """The minimum over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(value, op=dist.ReduceOp.MIN)
        return value

    def gather(self, value: Tensor) -> Tensor:
        """Every rank's `value` (of one shape) one after the other: [world * n, ...]."""
        if self.size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def main_first(self, work: Callable[[], str], per_node: bool = False) -> str:
        """Runs `work` on rank 0 (or on each node's first rank) and tells the others what it returned.

        The others wait at the process group's store, however long it takes: no collective is open that could time
        out. Where `work` raises Mistake, every process raises it.
        """
        if self._store is None:
            return work()
        self._turns += 1
        place = f"node {os.environ.get('GROUP_RANK', '0')}" if per_node else "world"
        key = f"turn {self._turns} of {place}"
        first = self._accelerator.is_local_main_process if per_node else self.is_main
        if first:
            try:
                self._store.set(key, "+" + work())
            except Mistake as mistake:
                self._store.set(key, f"-{mistake}")
                raise
        self._store.wait([key], _FOREVER)
        told = self._store.get(key).decode()
        if told[0] == "-":
            raise Mistake(told[1:])
        return told[1:]

    def norm_group(self, processes: int) -> Any:
        """The process group of this rank among groups of `processes` consecutive ranks."""
        groups = [dist.new_group(list(range(first, first + processes))) for first in range(0, self.size, processes)]
        return groups[self.rank // processes]

    def close(self) -> None:
        """Leaves the process group, at the end of what went well: after an error other ranks may wait in a collective,
        and the launcher ends them."""
        self._accelerator.end_training()


def _wants_cpu() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def _resolve(precision: str) -> str:
    if precision != "auto":
        return precision
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if launched not in ("no", "bf16", "fp16"):
        raise Mistake(f"--mixed_precision {launched} of accelerate launch is not supported: take no, bf16 or fp16")
    return launched


def _check_launch(on_cpu: bool) -> None:
    """Raises Mistake where the launcher's environment cannot give what it says."""
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation != "1":
        raise Mistake(
            f"gradient_accumulation_steps {accumulation} of accelerate launch would change the batch: leave it at 1, "
            "micro_batch splits a batch to fit the memory"
        )
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = devices is not None and devices.split(",")[0].strip() in ("", "-1")  # accelerate_configs/cpu_ddp.yaml
    asked_for_gpu = launched and not _wants_cpu() and not hidden and (several or bool(devices))
    if on_cpu and asked_for_gpu:
        raise Mistake(
            "accelerate launch was configured for GPUs and this machine has none that torch can use: take "
            f"--config_file accelerate_configs/{'cpu_ddp' if several else 'cpu'}.yaml, or check the driver (nvidia-smi)"
        )
    if launched and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        # `accelerate launch --cpu --num_processes 2` starts one process and sets only the address.
        raise Mistake(
            "accelerate launch was asked for several processes and started one: take --config_file "
            "accelerate_configs/cpu_ddp.yaml (or multi_gpu.yaml), which start them"
        )


def _check_found(size: int) -> None:
    for variable in _SEVERAL:
        asked = int(os.environ.get(variable) or 1)
        if asked > 1 and size == 1:
            raise Mistake(
                f"{variable} says {asked} processes, and each believes that it is alone: start them with accelerate "
                "launch (accelerate_configs/) so that they find each other"
            )

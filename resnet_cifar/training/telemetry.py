"""How well a run uses its hardware, and what it costs.

Everything is measured by the host's clock and counters: nothing here waits for the device during training.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.training import flops
from resnet_cifar.training.plan import Plan

_GIB = 2**30
_JOULES_PER_KWH = 3.6e6


class Telemetry:
    """The measured fields of a row of metrics.jsonl; those without a meaning on this device are absent.

    images_per_second  of all ranks, excluding the time of evaluations and checkpoints
    mfu                model FLOPs utilisation: the model's FLOPs per second over the peak of all devices in the
                       precision of the run (Chowdhery et al. 2022, PaLM, appendix B); only for GPUs with a known peak
    memory_gib         rank 0's peak of allocated device memory since the previous row (ranks are alike); GPUs only
    gpu_utilization    the share of the last second or less in which rank 0's GPU executed any kernel, other processes'
                       included; 0 to 1; only where NVML tells
    wait_share         the share of the time since the previous row, evaluations and checkpoints included, in which
                       rank 0's host waited for images from disk or for a checkpoint; 0 to 1
    """

    def __init__(self, plan: Plan, context: DistributedContext, data: ImageData) -> None:
        self.plan, self.context, self._data = plan, context, data
        self._on_gpu = context.device.type == "cuda"
        self._peak: float | None = None
        if self._on_gpu:
            name = torch.cuda.get_device_name(context.device)
            self._peak = flops.peak(name, context.precision, context.uses_tf32)
        self._flops: dict[tuple[str, int], float] = {}  # per image, by trainable part and image size
        self._counters = GpuCounters(context.device)
        self._joules = self._counters.joules()
        self._waited = 0.0
        self.start(0)

    def start(self, step: int) -> None:
        """Starts a new row now, after `step` updates."""
        self._step, self._excluded = step, 0.0
        self._began, self._waited_before = time.perf_counter(), self._seconds_waited()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self.context.device)

    def exclude(self, seconds: float) -> None:
        """Excludes time without training from the row's images_per_second and mfu."""
        self._excluded += seconds

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which the host waits for a checkpoint."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - began

    def row(self, step: int) -> dict[str, float]:
        """The fields of the row after `step` updates; starts the next row."""
        steps, seconds = step - self._step, time.perf_counter() - self._began
        speed = steps * self.plan.recipe.batch_size / (seconds - self._excluded)
        found = {"images_per_second": speed}
        if self._peak:
            an_image = sum(map(self._flops_at, range(self._step, step))) / steps
            found["mfu"] = speed * an_image / (self._peak * self.context.size)
        if self._on_gpu:
            found["memory_gib"] = torch.cuda.max_memory_allocated(self.context.device) / _GIB
            utilization = self._counters.utilization()
            if utilization is not None:
                found["gpu_utilization"] = utilization
        found["wait_share"] = (self._seconds_waited() - self._waited_before) / seconds
        self.start(step)
        return found

    def energy_kwh(self) -> float | None:
        """The energy that the GPUs of all ranks have used since construction; None where NVML cannot tell.

        Collective: every rank takes part and waits for the device. Other users of the same GPUs are included.
        """
        if not self._on_gpu:
            return None
        now = self._counters.joules()
        joules = math.nan if now is None or self._joules is None else now - self._joules
        total = self.context.all_reduce_sum_(
            torch.tensor(joules, dtype=torch.float64, device=self.context.device)
        ).item()
        return None if math.isnan(total) else total / _JOULES_PER_KWH

    def _seconds_waited(self) -> float:
        return self._waited + self._data.train.seconds_waited + self._data.validation.seconds_waited

    def _flops_at(self, step: int) -> float:
        """FLOPs per image in update `step`; counted once for each kind of phase."""
        kind = self.plan.phase_at(step).trainable, self.plan.image_size(step)
        if kind not in self._flops:
            trains, size = kind
            self._flops[kind] = flops.flops_an_image(self.plan.recipe, len(self._data.classes), size, trains)
        return self._flops[kind]


class GpuCounters:
    """What NVML, a part of every NVIDIA driver, counts on one GPU; on CPUs and without NVML, nothing."""

    def __init__(self, device: torch.device) -> None:
        self._nvml: ctypes.CDLL | None = None
        self._handle = ctypes.c_void_p()
        if device.type != "cuda":
            return
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()  # whatever CUDA_VISIBLE_DEVICES hides
        with contextlib.suppress(OSError):  # no such library
            nvml = ctypes.CDLL("libnvidia-ml.so.1")
            if nvml.nvmlInit_v2() == 0 and nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(self._handle)) == 0:
                self._nvml = nvml

    def joules(self) -> float | None:
        """The energy used since the driver was loaded; None for slices of a GPU (MIG) and for GPUs before Volta."""
        millijoules = ctypes.c_ulonglong()
        return millijoules.value / 1000 if self._read("TotalEnergyConsumption", millijoules) else None

    def utilization(self) -> float | None:
        """The share of NVML's last sample period, 1/6 to 1 s, in which a kernel was running; None for slices (MIG)."""
        percent = (ctypes.c_uint * 2)()  # of the time with a kernel, and of the time with reads or writes of memory
        return percent[0] / 100 if self._read("UtilizationRates", percent) else None

    def _read(self, name: str, value: ctypes._CData) -> bool:
        function = getattr(self._nvml, f"nvmlDeviceGet{name}", None)  # older drivers have fewer
        return function is not None and function(self._handle, ctypes.byref(value)) == 0


def costs(attempts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """seconds, gpu_hours and energy_kwh of a run, summed over the attempts in attempts.json; unknown values are absent.

    An attempt lasts from when it acquired the run directory to its end or its last sign of life. Energy is absent if an
    attempt did not record it, for example because it was killed.
    """
    found = {"seconds": sum(attempt["ended"] - attempt["began"] for attempt in attempts)}
    on_gpus = [attempt for attempt in attempts if attempt.get("gpus")]
    if not on_gpus:
        return found
    gpu_seconds = sum(attempt["gpus"] * (attempt["ended"] - attempt["began"]) for attempt in on_gpus)
    found["gpu_hours"] = gpu_seconds / 3600
    energies = [attempt.get("energy_kwh") for attempt in on_gpus]
    if None not in energies:
        found["energy_kwh"] = sum(energies)
    return found

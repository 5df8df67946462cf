"""A model of the training step on N devices, fitted to measurements. Pure functions of numbers, no processes.

    step(N, b)  = local(N, b) + exposed(N, b)                               seconds, b images per device
    local(N, b) = max(host, fixed + per_image b) (1 + sharing full(N))      the step without gradient synchronization
    exposed     = max(T(N) / buckets, T(N) - overlap local(N, b) / passes)  communication that the step waits for
    T(N)        = slowdown (buckets latency hops(N) + 2 (N - 1) / N gradient_bytes / bandwidth)
    hops(N)     = log2 N (tree) or N - 1 (ring), whichever fits the all-reduce sizes better

full(N) is 0 for one process and 1 where every device of a machine has one: they share memory, power or cores. Latency
and bandwidth are fitted separately within a machine and between machines. The terms are those of Hockney's model of a
message and of the ring all-reduce (Thakur, Rabenseifner and Gropp 2005); DDP hides communication behind the backward
pass except for its last bucket (Li et al. 2020), and with gradient accumulation only behind the last of the step's
passes = b / micro_batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.optimize import least_squares

FIRST_BUCKET, BUCKET = 2**20, 25 * 2**20  # bytes: DDP's defaults
_PRIOR = 0.02  # weight of the typical overlap and slowdown, which only decides what the measurements leave open
_TYPICAL_OVERLAP = 0.5
_MOST_IMAGES = 2**16  # per device, of a batch that keeps an efficiency

Hops = Literal["tree", "ring"]


@dataclass(frozen=True)
class Step:
    """The measured step of `processes` devices with `images` each: seconds with and without synchronization, and of the
    host alone (0 where it cannot be told from the device). `passes`: the backward passes that it takes."""

    processes: int
    images: int
    seconds: float
    local_seconds: float
    host_seconds: float = 0.0
    passes: int = 1


@dataclass(frozen=True)
class Transfer:
    """A measured all-reduce of `size` bytes."""

    processes: int
    size: int
    seconds: float


@dataclass(frozen=True)
class Link:
    """What connects devices: seconds per hop of a message, bytes per second, and how hops grow with the devices."""

    latency: float
    bandwidth: float
    hops: Hops = "tree"

    def seconds(self, processes: int, size: float, messages: int = 1) -> float:
        """Seconds of an all-reduce of `size` bytes in `messages` parts."""
        if processes == 1:
            return 0.0
        hops = math.log2(processes) if self.hops == "tree" else processes - 1
        return messages * self.latency * hops + 2 * (processes - 1) / processes * size / self.bandwidth


@dataclass(frozen=True)
class ScalingModel:
    """The fitted model; see the module. `machine` and `network` are the links within and between machines, or None;
    `micro_batch`: the images of a backward pass, or 0 where each step took one."""

    gradient_bytes: int
    devices_per_machine: int
    fixed: float
    per_image: float
    host: float = 0.0
    sharing: float = 0.0
    overlap: float = 0.0
    slowdown: float = 1.0
    machine: Link | None = None
    network: Link | None = None
    micro_batch: int = 0

    @property
    def buckets(self) -> int:
        """The number of parts in which DDP reduces the gradients."""
        return 1 + max(0, math.ceil((self.gradient_bytes - FIRST_BUCKET) / BUCKET))

    def link(self, processes: int) -> Link | None:
        """The slowest link among this many devices; the other one where it was not measured."""
        ours, other = self.machine, self.network
        if processes > self.devices_per_machine:
            ours, other = other, ours
        return ours or other

    def local_seconds(self, processes: int, images: int) -> float:
        """Seconds of a step without synchronization."""
        compute = max(self.host, self.fixed + self.per_image * images)
        return compute * (1 + self.sharing * _full(processes, self.devices_per_machine))

    def exposed_seconds(self, processes: int, local: float, passes: float = 1) -> float:
        """Seconds that a step of `local` seconds in `passes` backward passes waits for communication."""
        link = self.link(processes)
        if processes == 1 or link is None:
            return 0.0
        total = self.slowdown * link.seconds(processes, self.gradient_bytes, self.buckets)
        return max(total / self.buckets, total - self.overlap * local / passes)

    def step_seconds(self, processes: int, images: int) -> float:
        """Seconds of a step."""
        local = self.local_seconds(processes, images)
        passes = max(1.0, images / self.micro_batch) if self.micro_batch else 1.0
        return local + self.exposed_seconds(processes, local, passes)

    def images_per_second(self, processes: int, images: int) -> float:
        """Throughput of all devices."""
        return processes * images / self.step_seconds(processes, images)

    def smallest_batch(self, processes: int, unit: int, rate: float, efficiency: float = 0.9) -> int | None:
        """The smallest global batch, a multiple of processes * `unit`, whose throughput is at least `efficiency` of
        processes * `rate`; None if none is. Throughput grows with the batch, so it is found by bisection."""

        def suffices(units: int) -> bool:
            return self.images_per_second(processes, units * unit) >= efficiency * processes * rate

        most = max(1, _MOST_IMAGES // unit)
        if not suffices(most):
            return None
        low, high = 0, most  # `low` does not suffice
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if suffices(middle) else (middle, high)
        return processes * high * unit


def fit(
    steps: Sequence[Step], transfers: Sequence[Transfer], gradient_bytes: int, devices_per_machine: int
) -> ScalingModel:
    """The model that fits best: relative errors, so that small and large steps count alike. Needs one step or more."""
    return _fit_steps(steps, _fit_links(transfers, devices_per_machine), gradient_bytes, devices_per_machine)


def _fit_steps(
    steps: Sequence[Step], links: dict[str, Link | None], gradient_bytes: int, devices_per_machine: int
) -> ScalingModel:
    micro_batch = max(each.images // each.passes for each in steps) if any(each.passes > 1 for each in steps) else 0
    parameters = _fit_local(steps, devices_per_machine)
    model = ScalingModel(gradient_bytes, devices_per_machine, *parameters, **links, micro_batch=micro_batch)
    return _fit_overlap(model, [each for each in steps if each.processes > 1 and model.link(each.processes)])


def held_back_errors(
    steps: Sequence[Step], transfers: Sequence[Transfer], gradient_bytes: int, devices_per_machine: int
) -> dict[str, Any]:
    """The relative errors of step times that the model did not see: {"points": {...}, "largest_world": {...} or None}.

    `points`: each step is predicted by a model of all others. `largest_world`: the steps of the largest number of
    processes, by a model of the smaller ones, if these include several processes over the same kind of link.
    """

    sizes, links = (gradient_bytes, devices_per_machine), _fit_links(transfers, devices_per_machine)

    def errors(held: list[Step], links: dict[str, Link | None]) -> list[float]:
        model = _fit_steps([each for each in steps if each not in held], links, *sizes)
        return [abs(model.step_seconds(each.processes, each.images) / each.seconds - 1) for each in held]

    points = [errors([step], links)[0] for step in steps] if len(steps) > 1 else []
    largest = max(each.processes for each in steps)
    smaller = [each for each in transfers if each.processes < largest]
    is_same_link = any(each.processes > devices_per_machine or largest <= devices_per_machine for each in smaller)
    held = [each for each in steps if each.processes == largest]
    world = errors(held, _fit_links(smaller, devices_per_machine)) if is_same_link else []
    return {
        "points": _summary(points),
        "largest_world": {"processes": largest, **_summary(world)} if world else None,
    }


def _summary(errors: list[float]) -> dict[str, Any]:
    if not errors:
        return {"count": 0, "median": None, "largest": None}
    return {"count": len(errors), "median": float(np.median(errors)), "largest": float(max(errors))}


def _full(processes: int, devices: int) -> float:
    """How full a machine is, from 0 for one process to 1."""
    return (min(processes, devices) - 1) / (devices - 1) if devices > 1 else 0.0


def _fit_links(transfers: Sequence[Transfer], devices_per_machine: int) -> dict[str, Link | None]:
    """The links `machine` and `network`, from the all-reduces that stay within a machine and those that do not."""
    within = [each for each in transfers if each.processes <= devices_per_machine]
    return {
        "machine": _fit_link(within),
        "network": _fit_link([each for each in transfers if each not in within]),
    }


def _fit_local(steps: Sequence[Step], devices: int) -> tuple[float, float, float, float]:
    """(fixed, per_image, host, sharing)."""
    images = np.array([each.images for each in steps], dtype=float)
    full = np.array([_full(each.processes, devices) for each in steps])
    seconds = np.log([each.local_seconds for each in steps])
    host = min(each.host_seconds for each in steps)
    has_slope, has_sharing = len(set(images)) > 1, len(set(full)) > 1
    slope = float(np.exp(seconds - np.log(images)).min())

    def unpack(values: np.ndarray) -> tuple[float, float, float]:
        fixed, per_image, sharing = values
        return (fixed if has_slope else 0.0), per_image, (sharing if has_sharing else 0.0)

    def residuals(values: np.ndarray) -> np.ndarray:
        fixed, per_image, sharing = unpack(values)
        local = np.maximum(host, fixed + per_image * images) * (1 + sharing * full)
        return np.concatenate([np.log(local) - seconds, [1e-6 * fixed / slope, 1e-6 * sharing]])

    start = [0.1 * slope * images.min(), slope, 0.01]
    found = least_squares(
        residuals, start, x_scale=[start[0], slope, 0.1], bounds=([0, 1e-12, 0], np.inf), loss="soft_l1", f_scale=0.05
    )
    fixed, per_image, sharing = unpack(found.x)
    return float(fixed), float(per_image), host, float(sharing)


def _fit_link(transfers: Sequence[Transfer]) -> Link | None:
    """Latency and bandwidth, with the kind of hops that leaves the smaller error; a tree if both leave the same."""
    if not transfers:
        return None
    fits = [_fit_hops(transfers, hops) for hops in ("tree", "ring")]
    return min(fits, key=lambda each: each[0])[1]  # the first of equals


def _fit_hops(transfers: Sequence[Transfer], hops: Hops) -> tuple[float, Link]:
    """(the remaining error, the link)."""

    def link(values: np.ndarray) -> Link:
        return Link(float(np.exp(values[0])), float(np.exp(values[1])), hops)

    def residuals(values: np.ndarray) -> np.ndarray:
        tried = link(values)
        return np.array([math.log(tried.seconds(each.processes, each.size) / each.seconds) for each in transfers])

    small, large = min(transfers, key=lambda each: each.size), max(transfers, key=lambda each: each.size / each.seconds)
    start = [math.log(0.5 * small.seconds), math.log(large.size / large.seconds)]
    found = least_squares(residuals, start, loss="soft_l1", f_scale=0.2)
    return round(float(found.cost), 9), link(found.x)


def _fit_overlap(model: ScalingModel, steps: Sequence[Step]) -> ScalingModel:
    """The model with the overlap and slowdown of the steps of several processes, given their measured local times."""
    if not steps:
        return model

    def tried(values: np.ndarray) -> ScalingModel:
        return replace(model, overlap=float(values[0]), slowdown=float(math.exp(values[1])))

    def residuals(values: np.ndarray) -> np.ndarray:
        ours = tried(values)
        exposed = [ours.exposed_seconds(each.processes, each.local_seconds, each.passes) for each in steps]
        errors = [
            math.log((each.local_seconds + wait) / each.seconds) for each, wait in zip(steps, exposed, strict=True)
        ]
        return np.array([*errors, _PRIOR * (values[0] - _TYPICAL_OVERLAP), _PRIOR * values[1]])

    # The exposed time has a kink in both, so several starts are tried.
    starts = [(overlap, slowdown) for overlap in (0.1, 0.5, 0.9) for slowdown in (0.0, 0.7)]
    fits = (least_squares(residuals, start, bounds=([0, -2], [1, 2])) for start in starts)
    return tried(min(fits, key=lambda each: each.cost).x)

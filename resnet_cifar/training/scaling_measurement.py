"""Measures the training step of the processes that a launcher has started, with and without communication.

Every configuration is the step of train.py. Those that are compared take turns, so that a slower minute of the machine
hits all of them, and medians are kept. All ranks decide alike, by the slowest rank's seconds.
"""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from resnet_cifar.config.errors import RankError
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.validation import row_unit
from resnet_cifar.data import prepared_data
from resnet_cifar.data.image_dataset import free_memory
from resnet_cifar.data.loader import Loader
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.training import auto_micro_batch, preflight, scaling_results
from resnet_cifar.training.plan import Plan
from resnet_cifar.training.train_state import TrainState
from resnet_cifar.training.train_step import OutOfMemory, train_step

SIZES = tuple(2**power for power in range(15, 31))  # bytes of an all-reduce: 32 KiB to 1 GiB
_SHARES = 4  # numbers of images per device, each half of the one before
_WARM_UP = 2  # steps: DDP rebuilds its buckets after the first
_ROUNDS = (3, 9)  # at least, at most
_MEMORY = 0.25  # of the free memory, for an all-reduce
_BUCKET = 25  # MiB, DDP's default
_VARIANTS = {
    "buckets of 1 MiB": (1, False),
    "buckets of 100 MiB": (100, False),
    "gradients in bf16": (_BUCKET, True),
}
T = TypeVar("T")


@dataclass(frozen=True)
class Timing:
    """Seconds of one step in each round, of the slowest rank."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """(largest - smallest) / median."""
        return (max(self.rounds) - min(self.rounds)) / self.median

    def ratio(self, other: Timing) -> float:
        """The median of the rounds' ratios to those of `other`, which took turns with these."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.rounds, other.rounds, strict=True))


def measure(recipe: Recipe, context: DistributedContext, seconds: float) -> dict[str, Any]:
    """What `context.size` processes measure, about `seconds` for each comparison; the same on every rank.

    {"processes", ..., "points": one per number of images, "variants", "all_reduce", "plan"}. Raises UserError.
    """
    recipe = preflight.resolve(replace(recipe, precision=context.precision), once=context.run_on_main)
    preflight.check(recipe, context)
    entry = context.run_on_main(lambda: str(prepared_data.prepare(recipe.data)), per_node=True)
    data = prepared_data.load(Path(entry), recipe, context.device)
    plan = Plan(recipe, data.epoch_images, context.size, class_counts=data.class_counts().get("train", {}))
    number, steady = _longest_phase(plan)
    points, variants, gradient_bytes = [], [], 0
    for images in _shares(steady, context.size):
        is_strong = images == plan.per_rank_batch
        point, found, gradient_bytes = _measure_share(_Bench(steady, images, context, data), is_strong, seconds)
        points.append(point)
        variants += found
    reduced, stopped = _all_reduce(context, seconds) if context.size > 1 else ([], "")
    return {
        "processes": context.size,
        **_place(context),
        "device": context.describe(),
        "compiled": context.compiled,
        "precision": context.precision,
        "points": points,
        "variants": variants,
        "all_reduce": reduced,
        "all_reduce_stopped": stopped,
        "plan": {
            "images_per_epoch": plan.images,
            "batch_size": recipe.batch_size,
            "steps": plan.steps,
            "phase": number,
            "trainable": steady.phases[0].trainable,
            "image_size": steady.phases[0].image_size or steady.data.image_size,
            "gradient_bytes": gradient_bytes,
            "unit": row_unit(recipe),
            "step": scaling_results.step_fields(recipe),
        },
    }


def whole_step(state: TrainState, loader: Loader, lr: float | None = None) -> Callable[[], None]:
    """One step of train.py, at the plan's learning rate or at `lr`; every tenth copies its metrics to the host."""
    numbers = itertools.count()

    def step() -> None:
        number = next(numbers)
        batch = loader.batch(number, state.plan.image_size(number), state.plan.micro_batch)
        train_step(state, number, batch, state.plan.lr(number) if lr is None else lr)
        if number % 10 == 0:
            state.metrics.flush_async(number + 1)
            list(state.metrics.poll())

    return step


def _longest_phase(plan: Plan) -> tuple[int, Recipe]:
    """(the number of the phase with the most updates, the recipe with that phase alone and without an end)."""
    number = [0, *plan.phase_ends].index(plan.longest_phase_start)
    phase = replace(plan.recipe.phases[number], epochs=1e6, warmup_epochs=0.0, min_steps=0)
    return number, replace(plan.recipe, phases=(phase,), refit_steps=0)


def _shares(recipe: Recipe, processes: int) -> list[int]:
    """Images per device that are measured, descending: the batch on one device (weak scaling), its halves as long as
    BatchNorm's groups and micro-batches allow, and the share of the batch (strong scaling)."""
    halves = [recipe.batch_size >> times for times in range(_SHARES)]
    micro = 1 if recipe.micro_batch == "auto" else recipe.micro_batch or 1
    possible = {each for each in halves if each and each % row_unit(recipe) == 0 and each % min(micro, each) == 0}
    return sorted({*possible, recipe.batch_size // processes}, reverse=True)


def _place(context: DistributedContext) -> dict[str, Any]:
    """How many machines there are, the devices of each, and whether processes have to share its cores."""
    is_gpu, cores = context.device.type == "cuda", len(os.sched_getaffinity(0))
    devices = torch.cuda.device_count() if is_gpu else max(1, cores // torch.get_num_threads())
    return {
        "machines": context.nodes,
        "devices_per_machine": context.node_size if context.nodes > 1 else devices,
        "shares_cores": not is_gpu and context.node_size > devices,
    }


class _Bench:
    """Steps of `images` per device, as the recipe takes them."""

    def __init__(self, recipe: Recipe, images: int, context: DistributedContext, data: ImageData) -> None:
        micro = recipe.micro_batch if recipe.micro_batch == "auto" else min(recipe.micro_batch, images)
        batch = images * context.size
        self.recipe, self.context, self.data = replace(recipe, batch_size=batch, micro_batch=micro), context, data
        self.plan = auto_micro_batch.first_try(
            Plan(self.recipe, data.epoch_images, context.size, class_counts=data.class_counts().get("train", {})),
            context.device,
        )
        self._state = self._new_state(_BUCKET, compress=False)
        if recipe.micro_batch == "auto":
            self.plan = self._state.plan = auto_micro_batch.largest(self.plan, self._state, context)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients that are reduced."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self._state.parameters)

    def steps(self) -> dict[str, Callable[[], None]]:
        """The step, and with several processes the same step without synchronization of gradients."""
        synchronized = self._step(self._state)

        def local() -> None:
            with self.context.grad_sync(self._state.wrapped, now=False):
                synchronized()

        return {"step": synchronized} if self.context.size == 1 else {"step": synchronized, "local": local}

    def variants(self) -> dict[str, Callable[[], None]]:
        """The step with other ways to reduce gradients."""
        return {name: self._step(self._new_state(*options)) for name, options in _VARIANTS.items()}

    def host_seconds(self) -> float:
        """Seconds until the host has queued a step, of the slowest rank; 0 on CPUs, where the host is the device."""
        if self.context.device.type == "cpu":
            return 0.0
        step = self._step(self._state)
        found = [_seconds(step, 1, lambda: None, self.context.wait_for_device) for _ in range(_ROUNDS[1])]
        return statistics.median(_slowest(self.context, found))

    def _new_state(self, bucket_mb: int, compress: bool) -> TrainState:
        self.context.set_gradient_reduction(bucket_mb, compress)
        return TrainState(self.plan, self.context, self.data.classes, pretrained=False, decoding=self.data.decoding)

    def _step(self, state: TrainState) -> Callable[[], None]:
        data, rows = self.data, self.plan.rows(self.context.rank)
        loader = Loader(self.recipe, data.train, len(data.classes), state.preprocess, rows)
        step = whole_step(state, loader, lr=0.0)  # weights stay as they are, and losses finite

        def checked() -> None:
            try:
                step()
            except OutOfMemory as error:
                sentence = f"{error}, in micro-batches of {self.plan.micro_batch}: lower --micro_batch"
                raise RankError(sentence, is_told_here=True) from None

        return checked


def _take_turns(steps: dict[str, Callable[[], None]], context: DistributedContext, seconds: float) -> dict[str, Timing]:
    """The timing of each of `steps`, which take turns; all together take about `seconds`, if three rounds suffice."""
    ready = context.wait_for_device

    def turn(step: Callable[[], None], count: int) -> float:
        context.all_reduce_sum_(torch.zeros(1, device=context.device))  # all ranks begin together
        return _seconds(step, count, ready, ready) / count

    for step in steps.values():
        turn(step, _WARM_UP)
    once = sum(_slowest(context, [turn(step, 1) for step in steps.values()]))
    times = max(_ROUNDS[0], int(seconds / once))
    rounds = min(times, _ROUNDS[1])
    found: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in rotated(list(steps), number):
            found[name].append(turn(steps[name], times // rounds))
    agreed = iter(_slowest(context, [value for values in found.values() for value in values]))
    return {name: Timing(tuple(itertools.islice(agreed, rounds))) for name in found}


def _all_reduce(context: DistributedContext, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """(bytes, seconds and bus bandwidth of growing all-reduces, why larger ones are missing)."""
    found: list[dict[str, Any]] = []
    free = torch.tensor([_MEMORY * free_memory(context.device)], dtype=torch.float64, device=context.device)
    room, left = float(context.all_reduce_min_(free)), seconds
    for size in SIZES:
        if size > room:
            return found, f"{_mebibytes(size)} and more do not fit {_MEMORY:.0%} of the free memory"
        if found and 2 * found[-1]["seconds"] * (1 + _ROUNDS[0]) > left:
            return found, f"{_mebibytes(size)} and more take longer than the {seconds:g} s of --seconds"
        value = torch.zeros(size // 4, device=context.device)

        def reduce(value: torch.Tensor = value) -> None:
            context.all_reduce_sum_(value)

        ready = context.wait_for_device
        first = _slowest(context, [_seconds(reduce, 2, ready, ready) / 2])[0]
        rounds = min(max(_ROUNDS[0], int(seconds / len(SIZES) / first)), 5 * _ROUNDS[1])
        took = statistics.median(_slowest(context, [_seconds(reduce, 1, ready, ready) for _ in range(rounds)]))
        left -= 2 * first + rounds * took
        bus = 2 * (context.size - 1) / context.size * size / took  # as NCCL's tests count it
        found.append({"bytes": size, "seconds": took, "bus_bytes_per_second": bus})
    return found, ""


def _measure_share(bench: _Bench, is_strong: bool, seconds: float) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """(the point, the variants if `is_strong`, bytes of the gradients). What it has built is freed at its end."""
    steps = bench.steps()
    if is_strong and bench.context.size > 1:
        steps |= bench.variants()
    timings = _take_turns(steps, bench.context, seconds)
    variants = [_variant(name, timings) for name in _VARIANTS if name in timings]
    return _point(bench.plan, timings, bench.host_seconds()), variants, bench.gradient_bytes


def _point(plan: Plan, timings: dict[str, Timing], host_seconds: float) -> dict[str, Any]:
    step = timings["step"]
    local = timings.get("local", step)
    return {
        "images_per_device": plan.per_rank_batch,
        "micro_batch": plan.micro_batch,
        "seconds": step.median,
        "local_seconds": local.median,
        "host_seconds": host_seconds,
        "communication_share": max(0.0, 1 - local.ratio(step)),
        "rounds": len(step.rounds),
        "spread": step.spread,
    }


def _variant(name: str, timings: dict[str, Timing]) -> dict[str, Any]:
    """`seconds_ratio`: of the step with this variant to the step as it is; below 1 is faster."""
    timing, step = timings[name], timings["step"]
    return {"name": name, "seconds": timing.median, "seconds_ratio": timing.ratio(step), "spread": timing.spread}


def _seconds(step: Callable[[], None], count: int, before_end: Callable[[], None], after: Callable[[], None]) -> float:
    """Seconds of `count` steps. The device is idle at first; `before_end` is part of the time, `after` is not."""
    after()
    began = time.perf_counter()
    for _ in range(count):
        step()
    before_end()
    took = time.perf_counter() - began
    after()
    return took


def _slowest(context: DistributedContext, seconds: list[float]) -> list[float]:
    """Of each number, the largest of all ranks."""
    mine = torch.tensor([seconds], dtype=torch.float64, device=context.device)
    return context.gather(mine).amax(0).tolist()


def rotated(items: list[T], by: int) -> list[T]:
    """The items in the same circular order, beginning with number `by`: in each round another one is first."""
    by %= len(items)
    return items[by:] + items[:by]


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:g} MiB" if size < 2**30 else f"{size / 2**30:g} GiB"

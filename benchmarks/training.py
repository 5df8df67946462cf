"""ResNet-50 training at 32x32: the whole step (rate, batch, augment, update, sums) against the bare one.

The bare step is forward, backward and update of the same network on one resident batch, in plain torch. The stock step
is that of timm's model as it is, whose BatchNorm sees the whole batch: what norm groups cost is between the two.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F

from resnet_cifar import model as models
from resnet_cifar import optim
from resnet_cifar.cli import read_recipe
from resnet_cifar.data import store
from resnet_cifar.data.batches import Batch, Batches
from resnet_cifar.data.plan import Plan
from resnet_cifar.recipe import Recipe
from resnet_cifar.training.step import Learner
from resnet_cifar.training.world import World

ROUNDS = 11


def measure(source: str) -> dict[str, Any]:
    """Images/s of both, the medians of interleaved rounds, and the median of each round's ratio."""
    world = World("auto")
    gpu = world.device.type == "cuda"
    batch, steps = (1024, 20) if gpu else (128, 2)
    words = {"data.source": source, "batch_size": str(batch), "phases.0.epochs": "100000", "data.image_size": "32"}
    recipe = read_recipe("scratch", {**words, "model.stem": "imagenet", "precision": world.precision})
    data = store.load(store.ensure(recipe.data), recipe, world.device)
    plan = Plan(recipe, len(data.train), world=1)
    learner = Learner(plan, world, len(data.classes))
    batches = Batches(plan, data.train, len(data.classes), learner.format, rank=0)
    ours = _whole_step(learner, batches)
    resident = next(batches.step(0))
    compared = {
        "whole": ours,
        "bare": _bare_step(recipe, resident, world, recipe.model.norm_batch),
        "stock": _bare_step(recipe, resident, world, None),
    }
    speeds: dict[str, list[float]] = {name: [] for name in compared}
    for round_ in range(ROUNDS + 1):
        for name, step in compared.items():
            speed = batch * steps / _seconds(step, steps, gpu)
            if round_:  # the first one warms up
                speeds[name].append(speed)

    def ratio(of: str, to: str) -> float:
        pairs = zip(speeds[of], speeds[to], strict=True)
        return round(statistics.median(ours / theirs for ours, theirs in pairs), 4)

    return {
        "model": "resnet50, imagenet stem, 32 px",
        "batch": batch,
        "precision": world.precision,
        "images_per_second": {name: round(statistics.median(values), 1) for name, values in speeds.items()},
        "whole_over_bare": ratio("whole", "bare"),
        "bare_over_stock": ratio("bare", "stock"),
    }


def _seconds(step: Callable[[], None], count: int, gpu: bool) -> float:
    began = time.perf_counter()
    for _ in range(count):
        step()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _whole_step(learner: Learner, batches: Batches) -> Callable[[], None]:
    stream = enumerate(batches.steps())

    def step() -> None:
        number, micro_batches = next(stream)
        learner.update(number, micro_batches)
        if number % 10 == 0:
            learner.take_sums(number + 1)
            list(learner.ready_sums())

    return step


def _bare_step(recipe: Recipe, batch: Batch, world: World, norm_batch: int | None) -> Callable[[], None]:
    model = timm.create_model("resnet50", num_classes=10).to(world.device, memory_format=torch.channels_last)
    if norm_batch:
        models.group_norms(model, norm_batch)
    optimizer = optim.build(model, recipe.optimizer, 0.001, world.device)
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(world.precision)
    inputs, targets = batch

    def step() -> None:
        with torch.autocast(world.device.type, dtype=low, enabled=low is not None):
            logits = model(inputs)
        F.cross_entropy(logits.float(), targets, label_smoothing=recipe.loss.label_smoothing).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step

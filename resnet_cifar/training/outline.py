"""A run before it starts, as a person reads it; and what it will take, from a few images' forward and backward pass."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F

from resnet_cifar.data.plan import SMALL_SHARE, Plan
from resnet_cifar.data.store import ImageData
from resnet_cifar.reporting.console import duration
from resnet_cifar.training.step import Learner
from resnet_cifar.training.world import World

_PROBE = {"cpu": 8, "cuda": 64}  # images


def describe(plan: Plan, world: World, data: ImageData, run: Path) -> list[tuple[str, str]]:
    """The plan's facts, named."""
    recipe = plan.recipe
    size = "x".join(map(str, data.train.size))
    splits = f"{len(data.train):,} to train on, {len(data.validation):,} to validate, {len(data.test):,} to test"
    norm = recipe.model.norm_batch
    facts = [
        ("run", str(run)),
        ("data", f"{recipe.data.source}: {splits}; {len(data.classes)} classes, stored {size}, {data.fingerprint}"),
        ("images", data.place),
        *(("", remark) for remark in data.remarks),
        ("model", f"{recipe.model.name}, {recipe.model.stem} stem, at {recipe.data.image_size} pixels"),
        ("devices", f"{world.size} x {world.describe()}, precision {world.precision}"),
        (
            "batch",
            f"{recipe.batch_size} = {world.size} x {plan.share}, in micro-batches of {plan.micro_batch}; BatchNorm "
            "over " + (f"{norm} rows" if norm else "the micro-batch (the result depends on the machines)"),
        ),
    ]
    start = 0
    for number, (phase, end) in enumerate(zip(recipe.phases, plan.phase_ends, strict=True)):
        rates = " -> ".join(f"{plan.rate(step):.3g}" for step in sorted({start, (start + end) // 2, end - 1}))
        facts.append(
            (
                f"phase {number}",
                f"steps {start} to {end} ({plan.epoch(end - start):.2f} epochs), {recipe.optimizer.name}, peak "
                f"{phase.lr:g}, {phase.warmup:g} epochs of warm-up, {phase.decay}: {rates}",
            )
        )
        start = end
    return facts


def small_share(plan: Plan) -> str | None:
    """The strong-scaling warning, where one is due."""
    if plan.world == 1 or plan.share >= SMALL_SHARE:
        return None
    return (
        f"{plan.share} images a process ({plan.recipe.batch_size} on {plan.world}) keep a device busy for too short a "
        "time: more processes will not be faster (strong scaling)"
    )


def estimate(learner: Learner, data: ImageData) -> list[tuple[str, str]]:
    """Memory of one device and time of the run, measured on a few images and scaled up."""
    plan, device = learner.plan, learner.world.device
    images = min(plan.micro_batch, _PROBE[device.type])
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    size = plan.recipe.data.image_size
    inputs = torch.zeros(images, 3, size, size, device=device, dtype=learner.world.dtype)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    seconds = []
    for attempt in range(3):  # the first one warms up
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(note if attempt == 0 else lambda t: t, lambda t: t):
            loss = F.cross_entropy(learner.model(inputs), labels)
        learner.world.backward(loss)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    weights = {p.untyped_storage().data_ptr(): p.numel() * p.element_size() for p in learner.model.parameters()}
    activations = sum(n for pointer, n in saved.items() if pointer not in weights) / images * plan.micro_batch
    # Weights, gradients and two states of the optimiser, and the images.
    resident = 4 * sum(weights.values()) + sum(s.resident_bytes for s in (data.train, data.validation, data.test))
    speed, gib = images / min(seconds[1:]), 2**30
    total = plan.steps * plan.share / speed
    return [
        (
            "memory",
            f"about {(activations + resident) / gib:.1f} GiB a device, {activations / gib:.1f} for activations",
        ),
        ("time", f"about {duration(total)} of training ({speed:,.0f} images/s a device, measured on {images} images)"),
    ]

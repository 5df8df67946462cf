"""A run before it starts, as a person reads it; and what it will take, from a few images' forward and backward pass."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F

from resnet_cifar.data.plan import SMALL_SHARE, Plan
from resnet_cifar.data.store import ImageData
from resnet_cifar.recipe import Head
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
        (
            "model",
            f"{recipe.model.name}, {recipe.model.stem} stem, at {recipe.data.image_size} pixels"
            + f"; scored with the moving average of its weights, decay {recipe.model.ema:g}" * (recipe.model.ema > 0),
        ),
        *(("", f"with a head of its own: {head(recipe.model.head)}") for _ in range(recipe.model.head.is_deep)),
        ("devices", f"{world.size} x {world.describe()}"),
        ("precision", world.describe_precision()),
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
                f"steps {start} to {end} ({plan.epoch(end - start):.2f} epochs), "
                + "the head alone, " * (phase.train == "head")
                + f"at {phase.image_size} pixels, " * (phase.image_size is not None)
                + f"{recipe.optimizer.name}, peak {phase.lr:g}, {phase.warmup:g} epochs of warm-up, {phase.decay}: "
                + rates,
            )
        )
        start = end
    return facts


def head(settings: Head) -> str:
    """A deep head's layers in words: `flatten, norm, 128, dropout 0.5, norm, classes`."""
    norm = ["norm"] * settings.norm
    dropout = [f"dropout {settings.dropout:g}"] * (settings.dropout > 0)
    words = [{"model": "the model's pooling"}.get(settings.pool, settings.pool)]
    for width in settings.units:
        words += [*norm, str(width), *dropout]
    return ", ".join([*words, *norm, *([] if settings.widths else dropout), "classes"])


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
    plan, found, total, start = learner.plan, {}, 0.0, 0
    images = min(plan.micro_batch, _PROBE[learner.world.device.type])
    for phase, end in zip(plan.recipe.phases, plan.phase_ends, strict=True):
        kind = phase.train, phase.image_size or plan.recipe.data.image_size
        if kind not in found:
            learner.begin(phase.train)
            found[kind] = _measure(learner, images, kind[1])
        total += (end - start) * plan.share / found[kind][1]
        start = end
    activations = max(size for size, _ in found.values()) * plan.micro_batch
    weights = sum(p.numel() * p.element_size() for p in learner.model.parameters())
    # Weights, gradients and two states of the optimiser, their average, and the images.
    resident = (4 + (learner.average is not None)) * weights
    resident += sum(each.resident_bytes for each in (data.train, data.validation, data.test))
    gib, speeds = 2**30, " and ".join(f"{speed:,.0f}" for _, speed in found.values())
    return [
        (
            "memory",
            f"about {(activations + resident) / gib:.1f} GiB a device, {activations / gib:.1f} for activations",
        ),
        ("time", f"about {duration(total)} of training ({speeds} images/s a device, measured on {images} images)"),
    ]


def _measure(learner: Learner, images: int, size: int) -> tuple[float, float]:
    """Bytes of activations an image, and images/s, of a forward and backward pass of so many images."""
    saved: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in learner.model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    device = learner.world.device
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
    return sum(n for pointer, n in saved.items() if pointer not in weights) / images, images / min(seconds[1:])

"""The plan of a run in words, and an estimate of its memory and time from a forward and backward pass of few images."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F

from resnet_cifar.config.schema import METRIC_NAMES, Head
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.reporting.console import duration, speed
from resnet_cifar.training.plan import SMALL_PER_RANK_BATCH, Plan
from resnet_cifar.training.train_state import TrainState

_PROBE = {"cpu": 8, "cuda": 64}  # images


def describe(plan: Plan, context: DistributedContext, data: ImageData, run: Path) -> list[tuple[str, str]]:
    """(name, value) pairs of the plan."""
    recipe = plan.recipe
    size = "x".join(map(str, data.train.size))
    splits = f"{len(data.train):,} to train on, {len(data.validation):,} to validate, {len(data.test):,} to test"
    norm = recipe.model.ghost_batch_size
    facts = [
        ("run", str(run)),
        ("data", f"{recipe.data.source}: {splits}; {len(data.classes)} classes, stored {size}, {data.fingerprint}"),
        ("splits", data.origins),
        ("images", data.place),
        *(("", remark) for remark in data.remarks),
        (
            "model",
            f"{recipe.model.name}, {recipe.model.stem} stem, at {recipe.data.image_size} pixels"
            + f"; evaluated with the moving average of its weights, decay {recipe.model.ema_decay:g}"
            * (recipe.model.ema_decay > 0),
        ),
        *(("", f"with an MLP head: {describe_head(recipe.model.head)}") for _ in range(recipe.model.head.is_deep)),
        ("devices", f"{context.size} x {context.describe()}"),
        ("precision", context.describe_precision()),
        (
            "batch",
            f"{recipe.batch_size} = {context.size} x {plan.per_rank_batch}, in micro-batches of {plan.micro_batch}; "
            "BatchNorm over " + (f"{norm} rows" if norm else "the micro-batch (the result depends on the hardware)"),
        ),
    ]
    facts += describe_balance(plan)
    if recipe.evaluate.select_by != "accuracy" and len(data.validation):
        facts.append(
            ("selection", f"the checkpoint with the best validation {METRIC_NAMES[recipe.evaluate.select_by]}")
        )
    start = 0
    for number, (phase, end) in enumerate(zip(recipe.phases, plan.phase_ends, strict=True)):
        lrs = " -> ".join(f"{plan.lr(step):.3g}" for step in sorted({start, (start + end) // 2, end - 1}))
        facts.append(
            (
                f"phase {number}",
                f"steps {start} to {end} ({plan.epoch(end - start):.2f} epochs), "
                + "the head alone, " * (phase.trainable == "head")
                + f"at {phase.image_size} pixels, " * (phase.image_size is not None)
                + f"{recipe.optimizer.name}, peak {phase.lr:g}, {phase.warmup_epochs:g} epochs of warm-up, "
                + f"{phase.schedule}: {lrs}",
            )
        )
        start = end
    return facts


def describe_balance(plan: Plan) -> list[tuple[str, str]]:
    """What `data.sampling` and `loss.class_weights` do with the smallest and the largest class, if they are set."""
    counts, facts = {name: count for name, count in plan.class_counts.items() if count}, []
    named = {name: f"{name!r} ({count:,} image{'s' * (count > 1)})" for name, count in counts.items()}
    if plan.recipe.data.sampling == "balanced":
        small, large = min(counts, key=counts.get), max(counts, key=counts.get)
        uses = {name: f"{plan.class_shares[name] * plan.images / counts[name]:.3g} times" for name in (small, large)}
        text = f"an image of {named[small]} is used {uses[small]}, of {named[large]} {uses[large]}"
        facts.append(("sampling", f"balanced: per epoch, {text}"))
    if weights := plan.class_weights:
        ends = (choose(counts, key=weights.get) for choose in (min, max))
        least, most = (f"{weights[name]:.3g} for {named[name]}" for name in ends)
        facts.append(("loss", f"class weights from {least} to {most}"))
    return facts


def describe_head(settings: Head) -> str:
    """The layers of an MLP head: `flatten, norm, 128, dropout 0.5, norm, classes`."""
    norm = ["norm"] * settings.norm
    dropout = [f"dropout {settings.dropout:g}"] * (settings.dropout > 0)
    words = [{"model": "the model's pooling"}.get(settings.pool, settings.pool)]
    for width in settings.hidden_dims:
        words += [*norm, str(width), *dropout]
    return ", ".join([*words, *norm, *([] if settings.hidden_dims else dropout), "classes"])


def small_batch_warning(plan: Plan) -> str | None:
    """A warning where the share of a process is too small for strong scaling."""
    if plan.world_size == 1 or plan.per_rank_batch >= SMALL_PER_RANK_BATCH:
        return None
    return (
        f"{plan.per_rank_batch} images per process ({plan.recipe.batch_size} on {plan.world_size}) do not keep a "
        "device busy: more processes will not be faster (strong scaling)"
    )


def estimate(state: TrainState, data: ImageData) -> list[tuple[str, str]]:
    """Memory per device and training time, extrapolated from a few images."""
    plan, found, total, start = state.plan, {}, 0.0, 0
    images = min(plan.micro_batch, _PROBE[state.context.device.type])
    for phase, end in zip(plan.recipe.phases, plan.phase_ends, strict=True):
        kind = phase.trainable, phase.image_size or plan.recipe.data.image_size
        if kind not in found:
            state.start_stage(phase.trainable)
            found[kind] = _measure(state, images, kind[1])
        total += (end - start) * plan.per_rank_batch / found[kind][1]
        start = end
    activations = max(size for size, _ in found.values()) * plan.micro_batch
    weights = sum(p.numel() * p.element_size() for p in state.model.parameters())
    # Weights, gradients and two optimizer states, the moving average, and the images.
    resident = (4 + (state.average is not None)) * weights
    resident += sum(each.resident_bytes for each in (data.train, data.validation, data.test))
    gib, speeds = 2**30, " and ".join(speed(images) for _, images in found.values())
    return [
        (
            "memory",
            f"about {(activations + resident) / gib:.1f} GiB per device, {activations / gib:.1f} for activations",
        ),
        ("time", f"about {duration(total)} of training ({speeds} per device, measured on {images} images)"),
    ]


def _measure(state: TrainState, images: int, size: int) -> tuple[float, float]:
    """(bytes of activations per image, images/s) of a forward and backward pass of `images` images."""
    saved: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in state.model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    device = state.context.device
    inputs = torch.zeros(images, 3, size, size, device=device, dtype=state.context.dtype)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    seconds = []
    for attempt in range(3):  # the first one warms up
        began = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(note if attempt == 0 else lambda t: t, lambda t: t):
            loss = F.cross_entropy(state.model(inputs), labels)
        state.context.backward(loss)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return sum(n for pointer, n in saved.items() if pointer not in weights) / images, images / min(seconds[1:])

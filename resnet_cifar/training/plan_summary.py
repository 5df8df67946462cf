"""The plan of a run in words, warnings, and an estimate of its memory and time."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from resnet_cifar.config.errors import UserError
from resnet_cifar.config.schema import METRIC_NAMES, Head, Recipe
from resnet_cifar.config.validation import check_across, row_unit
from resnet_cifar.data.image_dataset import GIB, free_memory
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.models.mlp_head import head_module
from resnet_cifar.reporting.console import duration, speed
from resnet_cifar.training import preflight
from resnet_cifar.training.plan import SMALL_PER_RANK_BATCH, Plan
from resnet_cifar.training.train_state import TrainState

_FEW_STEPS = 50
_COUNTED = 16  # images whose activations are counted
_PROBE = {"cpu": 8, "cuda": 64}  # images


def describe(plan: Plan, context: DistributedContext, data: ImageData, run: Path) -> list[tuple[str, str]]:
    """(name, value) pairs of the plan."""
    recipe = plan.recipe
    size = "x".join(map(str, data.train.size))
    splits = f"{len(data.train):,} to train on, {len(data.validation):,} to validate, {len(data.test):,} to test"
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
            f"{recipe.batch_size} = {context.size} x {plan.per_rank_batch}, in micro-batches of {plan.micro_batch}"
            + " (auto)" * (recipe.micro_batch == "auto")
            + f"; {_describe_norm(recipe)}",
        ),
    ]
    facts += describe_balance(plan)
    if recipe.evaluate.select_by != "accuracy" and len(data.validation):
        facts.append(
            ("selection", f"the checkpoint with the best validation {METRIC_NAMES[recipe.evaluate.select_by]}")
        )
    if recipe.refit_steps:
        facts.append(("refit", f"trained {recipe.refit_remark}; an epoch is {plan.images:,} images, as before"))
    start = 0
    for number, (phase, end) in enumerate(zip(recipe.phases, plan.phase_ends, strict=False)):
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


def _describe_norm(recipe: Recipe) -> str:
    if recipe.model.batchnorm == "frozen":
        return "BatchNorm with the statistics of the pretrained weights"
    rows = recipe.model.ghost_batch_size
    return "BatchNorm over " + (f"{rows} rows" if rows else "the micro-batch (the result depends on the hardware)")


def describe_balance(plan: Plan) -> list[tuple[str, str]]:
    """What `data.sampling` and `loss.class_weights` do with the smallest and the largest class, if they are set."""
    counts, facts = {name: count for name, count in plan.class_counts.items() if count}, []
    named = {name: f"{name!r} ({count:,} image{'s' * (count > 1)})" for name, count in counts.items()}
    if plan.recipe.data.sampling == "balanced":
        small, large = min(counts, key=counts.get), max(counts, key=counts.get)
        uses = {name: f"{plan.image_uses[name]:.3g} times" for name in (small, large)}
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


def few_steps_warning(plan: Plan) -> str | None:
    """A warning where a whole data set is trained for fewer than 50 updates, with a batch size that gives as many."""
    recipe, unit = plan.recipe, row_unit(plan.recipe) * plan.world_size
    few = 0 < plan.steps < _FEW_STEPS
    if not few or recipe.data.limit or recipe.data.overfit_images or recipe.refit_steps:
        return None

    def suffices(rows: int) -> bool:
        try:
            smaller = replace(recipe, batch_size=rows)
            check_across(smaller)
            return replace(plan, recipe=smaller).steps >= _FEW_STEPS
        except UserError:
            return False

    epochs = sum(phase.epochs for phase in recipe.phases)
    # No larger batch gives as many updates; each phase has at least one.
    most = int(epochs * plan.images / max(_FEW_STEPS - len(recipe.phases) - 1, 1))
    sizes = range(min(recipe.batch_size - 1, most) // unit * unit, 0, -unit)
    rows = next(filter(suffices, sizes), None)
    before = sum(phase.epochs for phase in recipe.phases[:-1])
    last = math.ceil(_FEW_STEPS * recipe.batch_size / plan.images - before)
    fix = f"set batch_size to {rows}" if rows else f"raise phases.{len(recipe.phases) - 1}.epochs to {last:g}"
    updates = f"{plan.steps} update{'s' * (plan.steps > 1)} of {recipe.batch_size} images"
    return f"{updates} {'are' if plan.steps > 1 else 'is'} too few to learn much: {fix}"


def memory_warning(state: TrainState) -> str | None:
    """A warning where training takes more memory than is free, with the largest micro-batch that fits."""
    plan, free, per_image = state.plan, free_memory(state.context.device), activation_bytes(state)
    if not per_image or (plan.recipe.micro_batch == "auto" and state.context.device.type == "cuda"):
        return None  # unknown, or found by trial
    fixed = 3 * _weight_bytes(state)  # gradients and two optimizer states
    needed, rows = fixed + per_image * plan.micro_batch, plan.micro_batch
    if needed <= free:
        return None
    while rows and fixed + per_image * rows > free:
        rows = replace(plan, recipe=replace(plan.recipe, micro_batch=rows)).smaller_micro_batch
    return (
        f"training takes about {needed / GIB:.1f} GiB per process in micro-batches of {plan.micro_batch} images, and "
        f"{free / GIB:.1f} GiB are free: "
        + (f"set micro_batch to {rows}" if rows else "lower data.image_size or use a smaller model")
    )


def activation_bytes(state: TrainState) -> float | None:
    """Bytes per image that the largest phase's forward pass keeps for the backward pass.

    Counted on the meta device, without memory or computation; None if the model has an operation that it lacks.
    """
    recipe, context = state.plan.recipe, state.context
    reduced = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(context.precision, context.dtype)
    model = copy.deepcopy(preflight.meta_model(recipe)).to(reduced)
    stages = {(phase.trainable, phase.image_size or recipe.data.image_size) for phase in recipe.phases}
    try:
        found = [_saved_bytes(model, trainable, size, reduced) for trainable, size in stages]
        return max(found, default=0) / _COUNTED
    except NotImplementedError:
        return None


def _saved_bytes(model: torch.nn.Module, trainable: str, size: int, dtype: torch.dtype) -> int:
    """Bytes that autograd saves in a forward pass of `_COUNTED` images through a model on the meta device."""
    model.requires_grad_(trainable == "all").train(trainable == "all")
    head_module(model).requires_grad_().train()
    images = torch.empty(_COUNTED, 3, size, size, device="meta", dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    saved: dict[int, torch.Tensor] = {}  # meta tensors have no address; as they are kept, their storages are distinct
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.setdefault(tensor.untyped_storage()._cdata, tensor), lambda tensor: tensor
    ):
        model(images)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in saved.items() if storage not in weights)


def estimate(state: TrainState, data: ImageData) -> list[tuple[str, str]]:
    """Memory per device, and training time as extrapolated from a few images."""
    plan, speeds, total, start = state.plan, {}, 0.0, 0
    images = min(plan.micro_batch, _PROBE[state.context.device.type])
    for phase, end in zip(plan.recipe.phases, plan.phase_ends, strict=False):
        kind = phase.trainable, phase.image_size or plan.recipe.data.image_size
        if kind not in speeds:
            state.start_stage(phase.trainable)
            speeds[kind] = _speed(state, images, kind[1])
        total += (end - start) * plan.per_rank_batch / speeds[kind]
        start = end
    activations = activation_bytes(state)
    # Weights, gradients and two optimizer states, the moving average, and the images.
    resident = (4 + (state.average is not None)) * _weight_bytes(state)
    resident += sum(each.resident_bytes for each in (data.train, data.validation, data.test))
    memory = "unknown: this model has an operation whose memory cannot be counted"
    if activations is not None:
        kept = activations * plan.micro_batch
        memory = f"about {(kept + resident) / GIB:.1f} GiB per device, {kept / GIB:.1f} for activations"
    if not speeds:
        return [("memory", memory), ("time", "no updates: one pass over the images")]
    words = " and ".join(map(speed, speeds.values()))
    alone = ", without communication" * (plan.world_size > 1)
    return [
        ("memory", memory),
        ("time", f"about {duration(total)} of training ({words} per device, measured on {images} images{alone})"),
    ]


def _weight_bytes(state: TrainState) -> int:
    return sum(p.numel() * p.element_size() for p in state.model.parameters())


def _speed(state: TrainState, images: int, size: int) -> float:
    """images/s of forward and backward passes of `images` images."""
    device = state.context.device
    inputs = torch.zeros(images, 3, size, size, device=device, dtype=state.context.dtype)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    seconds = []
    for _ in range(3):  # the first one warms up
        began = time.perf_counter()
        state.context.backward(F.cross_entropy(state.model(inputs), labels))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return images / min(seconds[1:])

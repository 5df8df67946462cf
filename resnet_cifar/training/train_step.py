"""One training step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_cifar import rng
from resnet_cifar.data.image_dataset import to_device
from resnet_cifar.data.loader import Batch
from resnet_cifar.distributed.context import is_out_of_memory
from resnet_cifar.optim.factory import set_lr
from resnet_cifar.training.train_state import TrainState


class OutOfMemory(RuntimeError):
    """A forward or backward pass ran out of memory; weights and optimizer are unchanged."""


def train_step(state: TrainState, step: int, batch: Iterable[Batch], lr: float) -> None:
    """Update number `step` from this rank's micro-batches. Nothing here waits for the device.

    Raises OutOfMemory where a pass ran out of memory; the step can then be repeated in smaller micro-batches.
    """
    recipe, optimizer = state.plan.recipe, state.wrapped_optimizer
    set_lr(state.optimizer, lr)
    state.seed_dropout(step)
    sums = _backward(state, step, batch)
    if sums is None:  # raised here, where no frame holds the failed pass's tensors any longer
        optimizer.zero_grad()
        raise OutOfMemory(f"{state.context.describe()} ran out of memory in update {step}")
    state.metrics.add(step, sums)
    if state.context.scaler is not None:  # fp16
        state.context.scaler.unscale_(state.optimizer)
        gradients = [p.grad for p in state.parameters if p.grad is not None]
        state.metrics.add_finite(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
    if recipe.optimizer.clip_grad_norm:
        norm = torch.nn.utils.clip_grad_norm_(state.parameters, recipe.optimizer.clip_grad_norm)
        state.metrics.add_grad_norm(norm)
    optimizer.step()
    optimizer.zero_grad()
    if state.average is not None:
        state.update_ema(step)
    state.throttle_host()


def _backward(state: TrainState, step: int, batch: Iterable[Batch]) -> Tensor | None:
    """Accumulates the gradient of the global batch's mean loss.

    Returns this rank's float64 [sum of losses, number of correct predictions], or None where memory ran out.
    """
    recipe, context = state.plan.recipe, state.context
    parts = state.plan.per_rank_batch // state.plan.micro_batch
    masks = _dropout_masks(state, step, parts)
    sums = torch.zeros(2, dtype=torch.float64, device=context.device)
    try:
        for part, (inputs, targets) in enumerate(batch, start=1):
            with context.grad_sync(state.wrapped, now=part == parts):
                logits = state.wrapped(inputs, *masks[part - 1])
                losses = F.cross_entropy(
                    logits,
                    targets,
                    weight=state.class_weights,
                    reduction="none",
                    label_smoothing=recipe.loss.label_smoothing,
                )
                # DDP averages over ranks; the gradient of the step is the mean over the global batch.
                context.backward(losses.sum() * (context.size / recipe.batch_size))
            # Under Mixup the larger label counts.
            correct = logits.detach().argmax(1) == targets.argmax(1)
            sums += torch.stack([losses.detach().sum(dtype=torch.float64), correct.sum(dtype=torch.float64)])
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    return sums


def _dropout_masks(state: TrainState, step: int, parts: int) -> list[tuple[Tensor, ...]]:
    """For each micro-batch the mask of the MLP head's dropout, bool [rows, units], keyed by (seed, step, row).

    Masks are arguments of the model, so that it is compiled once, and are drawn while the device is behind.
    """
    if not state.dropout_units:
        return [()] * parts
    recipe, rows = state.plan.recipe, state.plan.rows(state.context.rank)
    masks = rng.dropout_masks(recipe.seed, "dropout", step, rows, state.dropout_units, recipe.model.head.dropout)
    return [(part,) for part in to_device(masks, state.context.device).split(state.plan.micro_batch)]

"""Training metrics summed on the device; the host reads them steps later, without waiting."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_cifar.config.errors import UserError
from resnet_cifar.distributed.context import DistributedContext
from resnet_cifar.training.plan import Plan

_MAX_SKIPS = 20  # consecutive fp16 updates that the scaler may skip
_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class StepMetrics:
    """Means over all ranks and all images since the previous flush, after `step` updates.

    `gradient_norm`: the mean norm of the gradients before clipping, without the infinite ones that fp16's scaler skips;
    None where they are not clipped. `skipped`: the number of updates that the scaler has skipped; None without one.
    """

    step: int
    loss: float
    accuracy: float
    lr: float
    gradient_norm: float | None = None
    skipped: int | None = None


class MetricAccumulator:
    """Sums since the previous flush, the first step with a loss that was not finite, and skipped fp16 updates."""

    def __init__(self, plan: Plan, context: DistributedContext) -> None:
        self.plan, self.context = plan, context
        self._sums = torch.zeros(2, dtype=torch.float64, device=context.device)
        # Sum and count of norms, and updates that were skipped: the same on all ranks.
        self._norms = torch.zeros(3, dtype=torch.float64, device=context.device)
        self._first_bad = torch.full((1,), _NEVER, dtype=torch.int64, device=context.device)
        self._skipped = torch.zeros(1, dtype=torch.int64, device=context.device)
        self._pending: deque[tuple[int, int, Tensor, Tensor, torch.cuda.Event | None]] = deque()
        self._summed_to = 0

    def add(self, step: int, counts: Tensor) -> None:
        """Adds this rank's share of update `step`: float64 [sum of losses, number of correct predictions]."""
        self._sums += counts
        bad = torch.where(torch.isfinite(counts[0]), _NEVER, step)
        self._first_bad = torch.minimum(self._first_bad, bad)

    def add_grad_norm(self, norm: Tensor) -> None:
        """Adds the norm ([]) of the global batch's gradient before clipping; it is the same on every rank."""
        finite = norm < math.inf  # and not NaN
        self._norms[:2] += torch.stack([torch.where(finite, norm, 0.0), finite])

    def add_finite(self, finite: Tensor) -> None:
        """Notes whether the gradients were `finite` (bool []); fp16's scaler skips the update where they were not."""
        self._skipped = torch.where(finite, 0, self._skipped + 1)
        self._norms[2] += ~finite

    @property
    def skipped(self) -> int:
        """The number of consecutive fp16 updates that the scaler has skipped. Waits for the device."""
        return int(self._skipped)

    def resume(self, step: int, partial: dict[str, float] | None, skipped: int) -> None:
        """Continues after `step` updates; `partial`: `pending_sums` of the incomplete row at that point."""
        self._summed_to = step
        self._skipped.fill_(skipped)
        if partial:
            self._summed_to -= int(partial["steps"])
            norms = [partial["norms"], partial["norms_count"], partial.get("skipped", 0)]  # older checkpoints lack it
            self._norms += torch.tensor(norms, dtype=torch.float64).to(self._norms.device)
            if self.context.is_main:
                self._sums += torch.tensor([partial["loss"], partial["correct"]], dtype=torch.float64).to(
                    self._sums.device
                )

    def pending_sums(self, done: int) -> dict[str, float] | None:
        """The sums over all ranks since the previous flush, after `done` updates; None if there were no updates.

        Raises UserError where a loss was not finite.
        """
        if done == self._summed_to:
            return None
        loss, correct = self.context.all_reduce_sum_(self._sums.clone()).tolist()
        self._check(int(self.context.all_reduce_min_(self._first_bad.clone())), self.skipped)
        norms, count, skipped = self._norms.tolist()
        return {
            "steps": done - self._summed_to,
            "loss": loss,
            "correct": correct,
            "norms": norms,
            "norms_count": count,
            "skipped": skipped,
        }

    def flush_async(self, done: int) -> None:
        """After `done` updates: starts copying the sums since the previous flush to the host, for `poll`."""
        sums, first_bad = (
            self.context.all_reduce_sum_(self._sums.clone()),
            self.context.all_reduce_min_(self._first_bad.clone()),
        )
        sums, skipped = torch.cat([sums, self._norms]), self._skipped.clone()
        self._sums.zero_()
        self._norms.zero_()
        facts = torch.cat([first_bad, skipped])
        event = None
        if self.context.device.type == "cuda":
            sums, facts = _copy_to_host(sums), _copy_to_host(facts)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((done, done - self._summed_to, sums, facts, event))
        self._summed_to = done

    def poll(self, wait: bool = False) -> Iterable[StepMetrics]:
        """The metrics that have arrived, or all that were flushed if `wait`. Raises UserError for a loss not finite."""
        while self._pending and (wait or self._pending[0][-1] is None or self._pending[0][-1].query()):
            done, steps, sums, facts, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            self._check(*facts.tolist())
            images = steps * self.plan.recipe.batch_size
            loss, correct, norms, count, skipped = sums.tolist()
            norm, skips = norms / count if count else None, int(skipped) if self.context.scaler is not None else None
            yield StepMetrics(done, loss / images, correct / images, self.plan.lr(done - 1), norm, skips)

    def _check(self, first_bad: int, skipped: int) -> None:
        if first_bad != _NEVER:
            raise UserError(
                f"the loss of step {first_bad} is not finite: lower the learning rate (--phases.0.lr), add warm-up, or "
                "set --optimizer.clip_grad_norm 1"
            )
        if skipped >= _MAX_SKIPS:
            raise UserError(
                f"fp16 overflowed in {skipped} updates in a row: use --precision bf16, or lower the learning rate"
            )


def _copy_to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned host memory, which is under way when this returns."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

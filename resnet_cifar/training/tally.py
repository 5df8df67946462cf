"""What steps have seen, summed on the device: the host reads it steps later, and nothing waits."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_cifar.data.plan import Plan
from resnet_cifar.recipe import Mistake
from resnet_cifar.training.world import World

_SKIPS = 20  # fp16 updates in a row that the scaler may skip
_NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Sums:
    """What happened since the sums were taken before: over all ranks, after `step` updates.

    `gradient_norm`: the mean over these updates of the gradient's norm before it was clipped, without those that were
    not finite, which fp16's scaler skips; None where gradients are not clipped.
    """

    step: int
    loss: float
    accuracy: float
    rate: float
    gradient_norm: float | None = None


class Tally:
    """The sums since they were taken last, the first step whose loss was not finite, and fp16's skipped updates."""

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan, self.world = plan, world
        self._sums = torch.zeros(2, dtype=torch.float64, device=world.device)
        self._norms = torch.zeros(2, dtype=torch.float64, device=world.device)  # their sum and count
        self._first_bad = torch.full((1,), _NEVER, dtype=torch.int64, device=world.device)
        self._skipped = torch.zeros(1, dtype=torch.int64, device=world.device)
        self._pending: deque[tuple[int, int, Tensor, Tensor, torch.cuda.Event | None]] = deque()
        self._summed_to = 0

    def add(self, step: int, counts: Tensor) -> None:
        """What this rank has seen in update `step`: float64 [loss, right answers], summed over its images."""
        self._sums += counts
        bad = torch.where(torch.isfinite(counts[0]), _NEVER, step)
        self._first_bad = torch.minimum(self._first_bad, bad)

    def add_norm(self, norm: Tensor) -> None:
        """The norm ([]) of the global batch's gradient before it is clipped; every rank has the same."""
        finite = norm < math.inf  # and not NaN
        self._norms += torch.stack([torch.where(finite, norm, 0.0), finite])

    def skip(self, finite: Tensor) -> None:
        """Whether the gradients were `finite` (bool []); fp16's scaler skips the update where they were not."""
        self._skipped = torch.where(finite, 0, self._skipped + 1)

    @property
    def skipped(self) -> int:
        """fp16 updates in a row that the scaler has skipped. Waits for the device."""
        return int(self._skipped)

    def resume_at(self, step: int, begun: dict[str, float] | None, skipped: int) -> None:
        """Counts from `step` updates on; `begun`: what `unread` said of the row that was begun by then."""
        self._summed_to = step
        self._skipped.fill_(skipped)
        if begun:
            self._summed_to -= int(begun["steps"])
            norms = [begun.get("norms", 0.0), begun.get("norms_count", 0.0)]  # older checkpoints have none
            self._norms += torch.tensor(norms, dtype=torch.float64).to(self._norms.device)  # a sum over no ranks
            if self.world.is_main:
                self._sums += torch.tensor([begun["loss"], begun["correct"]], dtype=torch.float64).to(self._sums.device)

    def unread(self, done: int) -> dict[str, float] | None:
        """The sums since they were taken last, after `done` updates, over all ranks; None where there are none.

        Raises Mistake where a loss among them was not finite.
        """
        if done == self._summed_to:
            return None
        loss, correct = self.world.sum_(self._sums.clone()).tolist()
        self._check(int(self.world.smallest_(self._first_bad.clone())), self.skipped)
        norms, count = self._norms.tolist()
        return {
            "steps": done - self._summed_to,
            "loss": loss,
            "correct": correct,
            "norms": norms,
            "norms_count": count,
        }

    def take(self, done: int) -> None:
        """After `done` updates: sends the sums since the last time to the host, where `ready` finds them later."""
        sums, first_bad = self.world.sum_(self._sums.clone()), self.world.smallest_(self._first_bad.clone())
        sums, skipped = torch.cat([sums, self._norms]), self._skipped.clone()
        self._sums.zero_()
        self._norms.zero_()
        facts = torch.cat([first_bad, skipped])
        event = None
        if self.world.device.type == "cuda":
            sums, facts = _copied_aside(sums), _copied_aside(facts)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((done, done - self._summed_to, sums, facts, event))
        self._summed_to = done

    def ready(self, wait: bool = False) -> Iterable[Sums]:
        """The sums that have arrived; all that were taken, if `wait`. Raises Mistake where a loss was not finite."""
        while self._pending and (wait or self._pending[0][-1] is None or self._pending[0][-1].query()):
            done, steps, sums, facts, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            first_bad, skipped = facts.tolist()
            self._check(first_bad, skipped)
            images = steps * self.plan.recipe.batch_size
            loss, correct, norms, count = sums.tolist()
            norm = norms / count if count else None
            yield Sums(done, loss / images, correct / images, self.plan.rate(done - 1), norm)

    def _check(self, first_bad: int, skipped: int) -> None:
        if first_bad != _NEVER:
            raise Mistake(
                f"the loss of step {first_bad} is not finite: lower the rate (--phases.0.lr), add warm-up, or set "
                "--optimizer.clip 1"
            )
        if skipped >= _SKIPS:
            raise Mistake(f"fp16 overflowed in {skipped} updates in a row: take --precision bf16, or lower the rate")


def _copied_aside(tensor: Tensor) -> Tensor:
    """A copy in pinned memory of the host, on its way when this returns."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)

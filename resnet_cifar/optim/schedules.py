"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from resnet_cifar.config.schema import Phase


def phase_lr(phase: Phase, step: int, steps: int, steps_per_epoch: float) -> float:
    """The rate of update `step` in a phase of `steps`: linear warm-up from 0, then the schedule from the peak rate."""
    warmup = min(round(phase.warmup_epochs * steps_per_epoch), steps)
    if step < warmup:
        return phase.lr * step / warmup
    return phase.lr * SCHEDULES[phase.schedule]((step - warmup) / (steps - warmup)) ** phase.power


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _one_cycle(progress: float) -> float:
    """Smith & Topin 2019 with torch's default shape: cosine from 1/25 to 1 over 30 %, then to 1/250,000."""
    rise, start, end = 0.3, 1 / 25, 1 / 250_000
    if progress < rise:
        return start + (1 - start) * (1 - _cosine(progress / rise))
    return end + (1 - end) * _cosine((progress - rise) / (1 - rise))


# progress after warm-up in 0..1 -> fraction of the peak rate (timm has neither linear nor one-cycle).
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": _cosine,
    "linear": lambda progress: 1 - progress,
    "polynomial": lambda progress: 1 - progress,  # raised to phases.N.power, which is 1 in the others
    "step": lambda progress: 0.1 ** ((progress >= 0.5) + (progress >= 0.75)),
    "one-cycle": _one_cycle,
    "constant": lambda progress: 1.0,
}

"""Early stopping: ends training when the validation metric no longer improves."""

from __future__ import annotations

import math
from typing import Any

from resnet_cifar.config import schema
from resnet_cifar.config.schema import metric_score


class EarlyStopping:
    """Counts consecutive evaluations without an improvement. Checkpoints hold the state, so resumed runs stop alike."""

    def __init__(self, settings: schema.EarlyStopping) -> None:
        self.settings = settings
        self._best, self._waited = -math.inf, 0

    @property
    def over(self) -> bool:
        """Whether training stops here."""
        return 0 < self.settings.patience <= self._waited

    def update(self, scores: dict[str, float]) -> None:
        """Adds an evaluation: {"val/accuracy": ..., "val/loss": ..., ...}."""
        value = metric_score(scores, self.settings.metric)
        if value > self._best + self.settings.min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"best": self._best if math.isfinite(self._best) else None, "waited": self._waited}

    def resume(self, state: dict[str, Any]) -> None:
        """Restores a saved state."""
        self._best = -math.inf if state["best"] is None else state["best"]
        self._waited = state["waited"]

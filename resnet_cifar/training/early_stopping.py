"""Ending training when the validation split no longer gains."""

from __future__ import annotations

import math
from typing import Any

from resnet_cifar.config import schema


class EarlyStopping:
    """Counts scores in a row that were no improvement. Checkpoints hold its state: a resumed run stops alike."""

    def __init__(self, settings: schema.EarlyStopping) -> None:
        self.settings = settings
        self._best, self._waited = -math.inf, 0

    @property
    def over(self) -> bool:
        """Whether training ends here."""
        return 0 < self.settings.patience <= self._waited

    def see(self, scores: dict[str, float]) -> None:
        """The next scores: {"val/accuracy": ..., "val/loss": ...}."""
        value = scores["val/accuracy"] if self.settings.metric == "accuracy" else -scores["val/loss"]
        if value > self._best + self.settings.min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"best": self._best if math.isfinite(self._best) else None, "waited": self._waited}

    def resume(self, state: dict[str, Any]) -> None:
        """Takes a saved state up."""
        self._best = -math.inf if state["best"] is None else state["best"]
        self._waited = state["waited"]

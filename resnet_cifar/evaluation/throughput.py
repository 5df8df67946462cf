"""Images per second of an evaluation."""

from __future__ import annotations

import time

import torch


class ThroughputTimer:
    """Times a `predict`, which calls it before each batch as `check_stop`; the first batch (warm-up, compilation) is
    not counted.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._batches, self._start = device, 0, 0.0

    def __call__(self) -> None:
        """Before each batch."""
        self._batches += 1
        if self._batches == 2:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._start = time.perf_counter()

    def images_per_second(self, images: int) -> float | None:
        """Of all processes, called when `predict` has just returned; None if each process had a single batch."""
        if self._batches < 2:
            return None
        timed = images * (self._batches - 1) / self._batches
        return float(f"{timed / (time.perf_counter() - self._start):.4g}")

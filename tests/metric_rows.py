"""Rows of metrics.jsonl as runs are compared by them."""

from __future__ import annotations

import json
from pathlib import Path

# By the machine's clock and counters.
MEASURED = {"images_per_second", "mfu", "memory_gib", "gpu_utilization", "wait_share"}


def computed(row: dict[str, float]) -> dict[str, float]:
    """The row without what was measured: it follows from the recipe alone."""
    return {name: value for name, value in row.items() if name not in MEASURED}


def rows_of(run: str | Path) -> list[dict[str, float]]:
    """The rows of RUN/metrics.jsonl, computed."""
    return [computed(json.loads(line)) for line in Path(run, "metrics.jsonl").read_text().splitlines()]

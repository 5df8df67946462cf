"""Mean, spread and confidence interval of results over several seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from resnet_cifar.config.schema import Recipe

CONFIDENCE = 0.95


def metrics_of(recipe: Recipe) -> list[str]:
    """The results that are summarized: the accuracy, and the metric that selects the best checkpoint."""
    names = dict.fromkeys(("accuracy", recipe.evaluate.select_by))
    return [f"{split}/{name}" for name in names for split in ("val", "test")]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Number of runs, mean, standard deviation (n - 1) and the 95 % interval of the mean (Student's t, 1908).

    Deviation and interval of a single value are None. The interval of an accuracy may exceed 1.
    """
    from scipy.stats import t

    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return {"runs": 1, "mean": mean, "standard_deviation": None, "interval": None}
    deviation = statistics.stdev(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return {"runs": count, "mean": mean, "standard_deviation": deviation, "interval": [mean - half, mean + half]}


def summary_line(name: str, found: dict[str, Any]) -> str:
    """The result of `spread` for the metric `name`, in one line."""
    runs = f"{found['runs']} seed{'s' * (found['runs'] > 1)}"
    if found["interval"] is None:
        return f"{name}: {found['mean']:.4f} ({runs})"
    low, high = found["interval"]
    return (
        f"{name}: mean {found['mean']:.4f}, standard deviation {found['standard_deviation']:.4f}, "
        f"95 % interval of the mean {low:.4f} to {high:.4f} ({runs})"
    )

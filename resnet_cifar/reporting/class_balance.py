"""How many images of each class the splits have: a table with bars, and sentences about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_MOST_ROWS = 1500


def table(counts: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, Any]:
    """Split -> images of each class, int64 [classes], as rows of (count, width of its bar in %), and as sentences."""
    # `or 1`: a bar of nothing is as wide as nothing
    widths = {split: 100 * values / (values.max() or 1) for split, values in counts.items()}
    rows = [
        {"name": name, "cells": [(int(counts[s][label]), round(float(widths[s][label]), 1)) for s in counts]}
        for label, name in enumerate(classes[:_MOST_ROWS])
    ]
    return {"parts": list(counts), "rows": rows, "sentences": _sentences(counts, classes)}


def _sentences(counts: Mapping[str, np.ndarray], classes: Sequence[str]) -> list[str]:
    """Describes the class balance of each split."""
    if all(values.min() == values.max() for values in counts.values()):
        each = " and ".join(f"{values[0]:,} {split}" for split, values in counts.items())
        return [f"Balanced: {each} images of every class."]
    said = []
    for split, values in counts.items():
        low, high = int(values.argmin()), int(values.argmax())
        if values[low] == values[high]:
            said.append(f"{split}: every class has {_number(values[0], 'image', 'images')}.")
            continue
        empty = int((values == 0).sum())
        times = f"{values[high] / values[low]:.1f} times as many as the smallest" if values[low] else "the most"
        none = f" Without images are {empty:,} of {_number(len(classes), 'class', 'classes')}." if empty else ""
        small = f", {classes[low]} ({values[low]:,})" if values[low] else ""
        said.append(
            f"{split}: {classes[high]} has {_number(values[high], 'image', 'images')}, {times}{small}; always "
            f"predicting it is right for {values[high] / values.sum():.1%}.{none}"
        )
    return said


def _number(count: int, one: str, many: str) -> str:
    return f"{int(count):,} {one if count == 1 else many}"

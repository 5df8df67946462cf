"""Per-class metrics, confusion cells and the summary sentence of a report, from the values of eval-NAME.json."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

MAX_PAIRS = 30  # of confused classes
_WORST = 15  # classes shown before the full table is opened
_MANY = 1000  # images from which an accuracy has two decimals
_DARKEST = 0.5  # opacity of a full cell


class Cell(NamedTuple):
    """Number of images of class `actual` predicted as `predicted`, their share of the class, and the cell's shade."""

    actual: int
    predicted: int
    count: int
    share: float
    shade: float


def cells(counts: np.ndarray) -> list[list[Cell]]:
    """The confusion matrix as a table; mistakes are shaded by the root of their share, relative to the largest one."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    mistakes = shares * (1 - np.eye(len(counts)))
    most = mistakes.max() or 1.0
    darkness = np.where(np.eye(len(counts), dtype=bool), shares, mistakes / most)
    shades = np.round(np.sqrt(darkness) * _DARKEST, 3)
    return [
        [
            Cell(actual, predicted, int(counts[actual, predicted]), float(shares[actual, predicted]), float(shade))
            for predicted, shade in enumerate(shades[actual])
        ]
        for actual in range(len(counts))
    ]


def confused_pairs(counts: np.ndarray) -> list[Cell]:
    """The most frequent confusions, at most 30, in descending order."""
    mistakes = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:MAX_PAIRS]
    found = [(int(place) // len(counts), int(place) % len(counts)) for place in order]
    totals = counts.sum(1)
    return [Cell(a, p, int(counts[a, p]), counts[a, p] / totals[a], 0.0) for a, p in found if mistakes[a, p]]


class ClassMetrics(NamedTuple):
    """Metrics of a class, 0..1, or None without images; `predicted`: number of images predicted as it."""

    name: str
    images: int
    predicted: int
    precision: float | None
    recall: float | None
    f1: float | None


def by_class(evaluation: dict[str, Any]) -> list[ClassMetrics]:
    """The metrics of every class, in the model's order. `evaluation`: the content of eval-NAME.json."""
    predicted = np.array(evaluation["confusion"]).sum(0).tolist()
    return [
        ClassMetrics(name, values["images"], count, values["precision"], values["recall"], values["f1"])
        for (name, values), count in zip(evaluation["classes"].items(), predicted, strict=True)
    ]


def worst(classes: list[ClassMetrics]) -> list[ClassMetrics]:
    """The classes with the lowest F1, at most 15."""
    return sorted((each for each in classes if each.images), key=lambda each: each.f1)[:_WORST]


def summary_sentence(evaluation: dict[str, Any]) -> str:
    """The main result in one sentence."""
    known = [each for each in by_class(evaluation) if each.images]
    images, interval = evaluation["images"], evaluation.get("accuracy_interval")
    right, commonest = round(evaluation["accuracy"] * images), max(known, key=lambda each: each.images)
    ends = " to ".join(accuracy(end, images) for end in interval or ())
    share = accuracy(evaluation["accuracy"], images) + (f"; 95\u00a0% interval {ends}" if interval else "")
    said = f"{right:,} of {images:,} images are classified correctly ({share})"
    if len(known) < 2:
        return f"{said}; all are of one class."
    if interval and interval[0] <= commonest.images / images:
        share = percent(commonest.images / images)
        return f"{said}, which is not significantly better than always predicting {commonest.name} ({share})."
    best, least = (pick(known, key=lambda each: each.recall) for pick in (max, min))
    if best.recall == least.recall:
        return f"{said}, every class equally well."
    names = list(evaluation["classes"])
    place = names.index(least.name)
    row = np.array(evaluation["confusion"][place])
    row[place] = 0
    confused = f", which is most often predicted as {names[int(row.argmax())]}" if row.any() else ""
    ends = f"{best.name} best ({percent(best.recall)}), {least.name} worst ({percent(least.recall)})"
    return f"{said}: {ends}{confused}."


def accuracy(share: float, images: int | None = None) -> str:
    """97.34 %, or 97.3 % for fewer than a thousand images; two decimals if their number is unknown."""
    return percent(share, 1 if images is not None and images < _MANY else 2)


def percent(share: float, digits: int = 1) -> str:
    """54.2 %; more decimals close to 0 or 1, so that 99.96 % is not rounded to 100 %, nor 0.0004 % to 0 %."""
    if share in (0, 1):
        return f"{100 * share:.{digits}f}\u00a0%"
    if not 0.01 <= share <= 0.99:
        digits = max(digits, 2)
    while f"{100 * share:.{digits}f}" in (f"{0:.{digits}f}", f"{100:.{digits}f}"):
        digits += 1
    return f"{100 * share:.{digits}f}\u00a0%"


def probability_text(probability: float) -> str:
    """The probability of one prediction: 54 %."""
    return f"{100 * probability:.0f}\u00a0%" if probability < 0.995 else ">\u00a099\u00a0%"

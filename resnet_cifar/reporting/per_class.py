"""A scoring class by class: what a report's tables and its verdict say. Plain values from eval-NAME.json."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

PAIRS = 30  # of classes that are confused, where the matrix is too large for a table
_WORST = 15  # classes that are shown before all of a thousand are asked for
_MANY = 1000  # images, of whose accuracy two digits after the point say something
_DARKEST = 0.5  # opacity of the shade of a full cell


class Cell(NamedTuple):
    """How many images of class `actual` are taken for `predicted`, their share of the class, and the cell's shade."""

    actual: int
    predicted: int
    count: int
    share: float
    shade: float


def cells(counts: np.ndarray) -> list[list[Cell]]:
    """The confusion matrix as a table; mistakes are shaded against the largest one, by the root of the share."""
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


def pairs(counts: np.ndarray) -> list[Cell]:
    """The pairs of classes that are confused most often, at most 30, the worst first."""
    mistakes = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:PAIRS]
    found = [(int(place) // len(counts), int(place) % len(counts)) for place in order]
    totals = counts.sum(1)
    return [Cell(a, p, int(counts[a, p]), counts[a, p] / totals[a], 0.0) for a, p in found if mistakes[a, p]]


class ClassScores(NamedTuple):
    """A class's scores, 0..1 or None where it has no images; `taken`: how many images are taken for it."""

    name: str
    images: int
    taken: int
    precision: float | None
    recall: float | None
    f1: float | None


def by_class(scores: dict[str, Any]) -> list[ClassScores]:
    """Every class, in the model's order. `scores`: eval-NAME.json."""
    taken = np.array(scores["confusion"]).sum(0).tolist()
    return [
        ClassScores(name, values["images"], count, values["precision"], values["recall"], values["f1"])
        for (name, values), count in zip(scores["classes"].items(), taken, strict=True)
    ]


def worst(classes: list[ClassScores]) -> list[ClassScores]:
    """Those that are told worst, by F1, at most 15."""
    return sorted((each for each in classes if each.images), key=lambda each: each.f1)[:_WORST]


def verdict(scores: dict[str, Any]) -> str:
    """What a person should know first, in a sentence."""
    known = [each for each in by_class(scores) if each.images]
    images, (low, high) = scores["images"], scores["accuracy_interval"]
    right, commonest = round(scores["accuracy"] * images), max(known, key=lambda each: each.images)
    share, low_word, high_word = (accuracy(each, images) for each in (scores["accuracy"], low, high))
    interval = f"95\u00a0% interval {low_word} to {high_word}"
    said = f"{right:,} of {images:,} images are recognised ({share}; {interval})"
    if len(known) < 2:
        return f"{said}; all are of one class."
    if low <= commonest.images / images:
        share = percent(commonest.images / images)
        return f"{said}, which is not surely more than always saying {commonest.name} would give ({share})."
    best, least = (pick(known, key=lambda each: each.recall) for pick in (max, min))
    if best.recall == least.recall:
        return f"{said}, every class as well as the others."
    names = list(scores["classes"])
    place = names.index(least.name)
    row = np.array(scores["confusion"][place])
    row[place] = 0
    for_what = f", which is most often taken for {names[int(row.argmax())]}" if row.any() else ""
    ends = f"{best.name} best ({percent(best.recall)}), {least.name} worst ({percent(least.recall)})"
    return f"{said}: {ends}{for_what}."


def accuracy(share: float, images: int | None = None) -> str:
    """97.34 %, or 97.3 % of fewer than a thousand images; two digits where their number is not known."""
    return percent(share, 1 if images is not None and images < _MANY else 2)


def percent(share: float, digits: int = 1) -> str:
    """54.2 %; more digits where it is next to 0 or 1, so that 99.96 % is not 100, nor 0.0004 % nothing."""
    if share in (0, 1):
        return f"{100 * share:.{digits}f}\u00a0%"
    if not 0.01 <= share <= 0.99:
        digits = max(digits, 2)
    while f"{100 * share:.{digits}f}" in (f"{0:.{digits}f}", f"{100:.{digits}f}"):
        digits += 1
    return f"{100 * share:.{digits}f}\u00a0%"


def sureness(probability: float) -> str:
    """54 %, of one image."""
    return f"{100 * probability:.0f}\u00a0%" if probability < 0.995 else ">\u00a099\u00a0%"

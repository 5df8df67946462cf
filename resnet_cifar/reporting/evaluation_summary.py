"""A scoring as a page shows it: read from eval-NAME.json and the files beside it, and drawn."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from resnet_cifar.atomic_io import read_json
from resnet_cifar.evaluation.calibration import Reliability, reliability
from resnet_cifar.reporting import figures, gallery, per_class, prediction_table, style
from resnet_cifar.reporting.gallery import SavedImages
from resnet_cifar.reporting.per_class import accuracy, percent, sureness
from resnet_cifar.reporting.prediction_table import PredictionTable

# Without these of eval-NAME.json there is nothing to show.
_NEEDED = {"split", "source", "fingerprint", "checkpoint", "images", "accuracy", "accuracy_interval", "loss"}
_NEEDED |= {"top5", "calibration_error", "classes", "confusion"}
_EMBEDDED = 300_000  # bytes of a matrix that a page may hold as a picture


@dataclass(frozen=True)
class Scoring:
    """What eval-NAME.json and the files beside it hold; `predictions` and `pictures` are None where those are missing."""

    scores: dict[str, Any]
    predictions: PredictionTable | None
    pictures: SavedImages | None
    plain: Reliability | None
    scaled: Reliability | None

    @property
    def classes(self) -> list[str]:
        """What the model tells apart."""
        return list(self.scores["classes"])

    @property
    def counts(self) -> np.ndarray:
        """The confusion matrix."""
        return np.array(self.scores["confusion"], dtype=np.int64)


def read_scores(folder: Path, name: str) -> dict[str, Any] | None:
    """What eval-NAME.json says, or None where it lacks or says too little. Raises UserError where it is damaged."""
    scores = read_json(folder / f"eval-{name}.json")
    return scores if isinstance(scores, dict) and scores.keys() >= _NEEDED else None


def read(folder: Path, name: str) -> Scoring | None:
    """What was scored as NAME, or None where nothing was."""
    scores = read_scores(folder, name)
    if scores is None:
        return None
    predictions = prediction_table.read(folder / f"predictions-{name}.parquet")
    if predictions is None:
        return Scoring(scores, None, None, None, None)
    plain, temperature = prediction_table.of(*predictions), scores.get("temperature")
    found = prediction_table.of(*predictions, temperature) if temperature else plain
    bins = reliability(plain.sure, plain.right), reliability(found.sure, found.right) if temperature else None
    return Scoring(scores, found, gallery.read(folder / "report" / f"pictures-{name}.npz"), *bins)


def shown(scoring: Scoring | None, folder: Path, prefix: str = "", than: float = math.inf) -> dict[str, Any]:
    """What the page says of a scoring; its figures go to figures/, unless they are there and not older `than`."""
    nothing = dict.fromkeys(("verdict", "confusion", "by_class", "calibration", "gallery"))
    if scoring is None:
        return nothing
    counts, classes = scoring.counts, scoring.classes
    fits = len(classes) <= figures.READABLE
    confused = {
        "classes": classes,
        "rows": per_class.cells(counts) if fits else None,
        "pairs": per_class.pairs(counts),
    }
    told = per_class.by_class(scoring.scores)
    return {
        **nothing,
        "verdict": per_class.verdict(scoring.scores),
        "confusion": {**confused, **_confusion_figures(scoring, folder / "figures", prefix, than)},
        "by_class": {"all": told, "worst": None if fits else per_class.worst(told)},
        "calibration": _calibration(scoring, folder / "figures", prefix, than) if scoring.plain else None,
        "gallery": _gallery(scoring, folder / "figures", prefix, than) if scoring.pictures else None,
    }


def _confusion_figures(scoring: Scoring, folder: Path, prefix: str, than: float) -> dict[str, Any]:
    """Draws them, and gives their files' names, and the picture of a matrix that no table shows.

    Without words in the cells counts and shares look the same: then there is one.
    """
    wanted: dict[str, Literal["counts", "shares"]] = {f"{prefix}confusion": "counts"}
    if fits := len(scoring.classes) <= figures.READABLE:
        wanted[f"{prefix}confusion-shares"] = "shares"
    for name, cells in wanted.items():
        if style.is_older(folder, name, than):
            style.save(figures.confusion(scoring.counts, scoring.classes, cells), folder, name)
    return {"figures": list(wanted), "picture": None if fits else _embedded(folder / f"{prefix}confusion.png")}


def _embedded(file: Path) -> str | None:
    """A data: address of the picture, where it is small enough to be part of a page."""
    if not file.is_file() or file.stat().st_size >= _EMBEDDED:
        return None
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _calibration(scoring: Scoring, folder: Path, prefix: str, than: float) -> dict[str, Any]:
    drawn = figures.calibration(scoring.plain, scoring.scaled)
    if style.is_older(folder, f"{prefix}calibration", than):
        style.save(drawn, folder, f"{prefix}calibration")
    plain, scaled = scoring.plain, scoring.scaled
    sure = float((plain.confidence * plain.images).sum() / plain.images.sum())
    lean = sure - scoring.scores["accuracy"]
    return {
        "svg": style.inline(drawn, "reliability diagram"),
        "before": percent(plain.error),
        "after": percent(scaled.error) if scaled else None,
        "temperature": scoring.scores.get("temperature"),
        "lean": f"{abs(100 * lean):.1f} points too {'sure' if lean > 0 else 'unsure'} of itself",
    }


def _gallery(scoring: Scoring, folder: Path, prefix: str, than: float) -> dict[str, Any]:
    found, kept = scoring.predictions, scoring.pictures
    places = kept.places(found)
    shown = {row: kept.images[places[row]] for row in figures.surest_mistakes(found).tolist() if row in places}
    if style.is_older(folder, f"{prefix}mistakes", than):
        style.save(figures.mistakes(found, shown, scoring.classes), folder, f"{prefix}mistakes")
    chosen = gallery.choose(found, gallery.room(*kept.images.shape[1:3]))
    views = {name: set(getattr(chosen, name).tolist()) for name in ("surest", "wrong", "right")}
    order = np.argsort(-found.sure, kind="stable")
    pictures = [
        {
            "index": int(found.index[row]),
            "actual": int(found.labels[row]),
            "predicted": int(found.predicted[row]),
            "sure": sureness(found.sure[row]),
            "views": [name for name, rows in views.items() if row in rows],
            "address": gallery.address(kept.images[places[row]]),
        }
        for row in order.tolist()
        if row in places
    ]
    counts = {name: sum(name in each["views"] for each in pictures) for name in views}
    return {"pictures": pictures, "views": counts, "temperature": scoring.scores.get("temperature")}


def accuracy_in_words(scores: dict[str, Any]) -> str:
    """91.23 % (90.66 % to 91.77 %)."""
    share, low, high = (accuracy(each, scores["images"]) for each in (scores["accuracy"], *scores["accuracy_interval"]))
    return f"{share} ({low} to {high})"


def tiles(scores: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, what it is) of the figures that a person looks for first."""
    low, high = (accuracy(end, scores["images"]) for end in scores["accuracy_interval"])
    scaled, temperature = scores.get("calibration_error_scaled"), scores.get("temperature")
    after = (
        f"{percent(scaled)} at temperature {temperature:.3g}"
        if temperature and scaled is not None
        else "no temperature was fitted"
    )
    tiles = [
        (
            f"{scores['split']} accuracy",
            accuracy(scores["accuracy"], scores["images"]),
            f"of {scores['images']:,} images; 95\u00a0%: {low} to {high}",
        ),
        ("loss", f"{scores['loss']:.4f}", "cross-entropy"),
        ("calibration error", percent(scores["calibration_error"]), after),
    ]
    if len(scores["classes"]) > 5:
        tiles.insert(
            1, ("top-5", accuracy(scores["top5"], scores["images"]), "the right class is among the five likeliest")
        )
    if flipped := scores.get("flip"):
        tiles.append(
            ("with flips", accuracy(flipped["accuracy"], scores["images"]), "mean over each image and its mirror image")
        )
    return tiles

"""An evaluation as a report shows it, read from eval-NAME.json and the files beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from resnet_cifar.atomic_io import read_json
from resnet_cifar.evaluation.calibration import Reliability, reliability
from resnet_cifar.reporting import figures, gallery, html_page, per_class, prediction_arrays, style
from resnet_cifar.reporting.gallery import SavedImages
from resnet_cifar.reporting.per_class import accuracy, percent, probability_text
from resnet_cifar.reporting.prediction_arrays import PredictionTable

# The fields of eval-NAME.json that every page needs. Other metrics are optional and left out if missing.
_REQUIRED = {"split", "source", "checkpoint", "images", "accuracy", "classes", "confusion"}
_MAX_EMBEDDED = 300_000  # bytes of a confusion matrix that is embedded as an image


@dataclass(frozen=True)
class Evaluation:
    """The content of eval-NAME.json (`metrics`) and of the files beside it, which are None if missing.

    `plain`, `scaled`: reliability without and with the temperature.
    """

    metrics: dict[str, Any]
    predictions: PredictionTable | None
    images: SavedImages | None
    plain: Reliability | None
    scaled: Reliability | None

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.metrics["classes"])

    @property
    def counts(self) -> np.ndarray:
        """The confusion matrix."""
        return np.array(self.metrics["confusion"], dtype=np.int64)


def read_metrics(folder: Path, name: str) -> dict[str, Any] | None:
    """The content of eval-NAME.json, or None if it is missing or incomplete. Raises UserError if it is damaged."""
    metrics = read_json(folder / f"eval-{name}.json")
    return metrics if metrics is not None and metrics.keys() >= _REQUIRED else None


def read_evaluation(folder: Path, name: str) -> Evaluation | None:
    """The evaluation NAME in `folder`, or None if there is none."""
    metrics = read_metrics(folder, name)
    if metrics is None:
        return None
    predictions = prediction_arrays.read_predictions(folder / f"predictions-{name}.parquet")
    if predictions is None:
        return Evaluation(metrics, None, None, None, None)
    logits, labels, index, names = predictions
    temperature = metrics.get("temperature")
    found = prediction_arrays.from_logits(logits, labels, index, temperature, names)
    plain = reliability(prediction_arrays.max_probability(logits, 1.0), found.correct)
    bins = plain, reliability(found.confidence, found.correct) if temperature else None
    return Evaluation(metrics, found, gallery.load_images(folder / "report" / f"pictures-{name}.npz"), *bins)


def page_values(
    evaluation: Evaluation | None, folder: Path, prefix: str = "", older_than: float = math.inf
) -> dict[str, Any]:
    """The sections of report.html about an evaluation.

    Writes the figures into `folder`/figures unless they exist and are not `older_than` that time.
    """
    nothing = dict.fromkeys(("summary", "confusion", "by_class", "calibration", "gallery"))
    if evaluation is None:
        return nothing
    counts, classes = evaluation.counts, evaluation.classes
    fits = len(classes) <= figures.READABLE
    confused = {
        "classes": classes,
        "rows": per_class.cells(counts) if fits else None,
        "pairs": per_class.confused_pairs(counts),
    }
    by_class = per_class.by_class(evaluation.metrics)
    return {
        **nothing,
        "summary": per_class.summary_sentence(evaluation.metrics),
        "confusion": {**confused, **_confusion_figures(evaluation, folder / "figures", prefix, older_than)},
        "by_class": {"all": by_class, "worst": None if fits else per_class.worst(by_class)},
        "calibration": _calibration(evaluation, folder / "figures", prefix, older_than) if evaluation.plain else None,
        "gallery": _gallery(evaluation, folder / "figures", prefix, older_than) if evaluation.images else None,
    }


def _confusion_figures(evaluation: Evaluation, folder: Path, prefix: str, older_than: float) -> dict[str, Any]:
    """Writes the figures; returns their names and, for a matrix too large for a table, its image.

    Without text in the cells counts and shares look the same, so that one figure is enough.
    """
    wanted: dict[str, Literal["counts", "shares"]] = {f"{prefix}confusion": "counts"}
    if fits := len(evaluation.classes) <= figures.READABLE:
        wanted[f"{prefix}confusion-shares"] = "shares"
    for name, cells in wanted.items():
        if style.is_outdated(folder, name, older_than):
            style.save(figures.confusion(evaluation.counts, evaluation.classes, cells), folder, name)
    return {"figures": list(wanted), "image": None if fits else _embedded(folder / f"{prefix}confusion.png")}


def _embedded(file: Path) -> str | None:
    """A data: URL of the PNG, or None if it is too large."""
    if not file.is_file() or file.stat().st_size >= _MAX_EMBEDDED:
        return None
    return html_page.data_url(file.read_bytes(), "png")


def _calibration(evaluation: Evaluation, folder: Path, prefix: str, older_than: float) -> dict[str, Any]:
    drawn = figures.calibration(evaluation.plain, evaluation.scaled)
    if style.is_outdated(folder, f"{prefix}calibration", older_than):
        style.save(drawn, folder, f"{prefix}calibration")
    plain, scaled = evaluation.plain, evaluation.scaled
    confidence = float((plain.confidence * plain.images).sum() / plain.images.sum())
    gap = confidence - evaluation.metrics["accuracy"]
    return {
        "svg": style.inline(drawn, "reliability diagram"),
        "error": percent(plain.error),
        "scaled_error": percent(scaled.error) if scaled else None,
        "temperature": evaluation.metrics.get("temperature"),
        "bias": f"{abs(100 * gap):.1f} points {'over' if gap > 0 else 'under'}confident",
    }


def _gallery(evaluation: Evaluation, folder: Path, prefix: str, older_than: float) -> dict[str, Any]:
    found, kept = evaluation.predictions, evaluation.images
    places = kept.places(found)
    shown = {row: kept.images[places[row]] for row in figures.confident_mistakes(found).tolist() if row in places}
    if style.is_outdated(folder, f"{prefix}mistakes", older_than):
        style.save(figures.mistakes(found, shown, evaluation.classes), folder, f"{prefix}mistakes")
    chosen = gallery.select(found, gallery.capacity(*kept.images.shape[1:3]))
    views = {name: set(getattr(chosen, name).tolist()) for name in ("confident", "wrong", "right")}
    order = np.argsort(-found.confidence, kind="stable")
    images = [
        {
            **_image(evaluation, row, kept.images[places[row]]),
            "views": [name for name, rows in views.items() if row in rows],
        }
        for row in order.tolist()
        if row in places
    ]
    counts = {name: sum(name in each["views"] for each in images) for name in views}
    return {"images": images, "views": counts, "temperature": evaluation.metrics.get("temperature")}


def confident_mistakes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The most confident mistakes, for a page; none without predictions or stored images."""
    if evaluation.images is None:
        return []
    found, places = evaluation.predictions, evaluation.images.places(evaluation.predictions)
    rows = figures.confident_mistakes(found).tolist()
    return [_image(evaluation, row, evaluation.images.images[places[row]]) for row in rows if row in places]


def _image(evaluation: Evaluation, row: int, pixels: np.ndarray) -> dict[str, Any]:
    found = evaluation.predictions
    return {
        "place": found.place(row, evaluation.metrics["split"]),
        "actual": int(found.labels[row]),
        "predicted": int(found.predicted[row]),
        "probability": probability_text(found.confidence[row]),
        "url": gallery.data_url(pixels),
    }


def accuracy_text(metrics: dict[str, Any]) -> str:
    """91.23 % (90.66 % to 91.77 %)."""
    ends = [accuracy(end, metrics["images"]) for end in metrics.get("accuracy_interval", ())]
    return accuracy(metrics["accuracy"], metrics["images"]) + (f" ({' to '.join(ends)})" if ends else "")


def tiles(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, explanation) of the main metrics; one that an older evaluation lacks is left out."""
    images, temperature = metrics["images"], metrics.get("temperature")
    ends = " to ".join(accuracy(end, images) for end in metrics.get("accuracy_interval", ()))
    interval = f"; 95\u00a0%: {ends}" if ends else ""
    tiles = [(f"{metrics['split']} accuracy", accuracy(metrics["accuracy"], images), f"of {images:,} images{interval}")]
    if len(metrics["classes"]) > 5 and "top5" in metrics:
        tiles.append(("top-5", accuracy(metrics["top5"], images), "the right class is among the five most probable"))
    if "balanced_accuracy" in metrics:
        explanation = f"mean recall of the classes; macro F1 {percent(metrics['macro_f1'])}"
        tiles.append(("balanced accuracy", accuracy(metrics["balanced_accuracy"], images), explanation))
    if "loss" in metrics:
        tiles.append(("loss", f"{metrics['loss']:.4f}", "cross-entropy"))
    if "calibration_error" in metrics:
        scaled = metrics.get("calibration_error_scaled")
        is_scaled = temperature and scaled is not None
        after = f"{percent(scaled)} at temperature {temperature:.3g}" if is_scaled else "no temperature was fitted"
        tiles.append(("calibration error", percent(metrics["calibration_error"]), after))
    if flipped := metrics.get("flip"):
        explanation = "mean over each image and its mirror image"
        tiles.append(("with flips", accuracy(flipped["accuracy"], images), explanation))
    return tiles

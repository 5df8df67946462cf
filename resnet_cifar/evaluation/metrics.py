"""Metrics of predictions: pure functions, tested against scikit-learn.

Most are sums over the confusion matrix: importing torchmetrics or scikit-learn for them would take longer (1.3 s of CPU
time and 100 MB) than evaluating a small test split.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from resnet_cifar.config.schema import METRIC_NAMES
from resnet_cifar.evaluation.calibration import calibration_error


def loss(logits: Tensor, labels: Tensor) -> float:
    """Mean cross-entropy, without label smoothing."""
    return F.cross_entropy(logits.double(), labels).item()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose predicted class is right, 0..1."""
    return (logits.argmax(1) == labels).double().mean().item()


def accuracy_interval(logits: Tensor, labels: Tensor) -> list[float]:
    """95 % interval of the accuracy (Wilson 1927), to six decimals."""
    from scipy.stats import binomtest

    correct = int((logits.argmax(1) == labels).sum())
    interval = binomtest(correct, len(labels)).proportion_ci(method="wilson")
    return [round(float(interval.low), 6), round(float(interval.high), 6)]


def top5(logits: Tensor, labels: Tensor) -> float | None:
    """Share of images whose class is among the five most probable ones; None where there are no more than five."""
    if logits.shape[1] <= 5:
        return None
    likeliest = logits.topk(5, dim=1).indices
    return round((likeliest == labels[:, None]).any(1).double().mean().item(), 6)


def balanced_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean recall of the classes with images, 0..1: scikit-learn's balanced_accuracy_score."""
    right, actual, _ = _class_counts(logits, labels)
    present = actual > 0
    return (right[present] / actual[present]).mean().item()


def macro_f1(logits: Tensor, labels: Tensor) -> float:
    """Mean F1 of the classes that occur among labels or predictions, 0..1: scikit-learn's f1_score(average="macro").

    A class that is predicted but has no images counts as 0.
    """
    right, actual, predicted = _class_counts(logits, labels)
    occurs = actual + predicted > 0
    return (2 * right[occurs] / (actual + predicted)[occurs]).mean().item()


def _class_counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Correct predictions, images and predictions of each class, float64 [classes]."""
    predicted, count = logits.argmax(1), logits.shape[1]
    each = (predicted[predicted == labels], labels, predicted)
    return tuple(classes.bincount(minlength=count).double() for classes in each)


# The metrics that are one value over all images, as functions of logits [n, classes] and labels [n], in the order of
# eval-NAME.json. Register a new one here; older files without it stay readable.
OVERALL = {
    "loss": loss,
    "accuracy": accuracy,
    "accuracy_interval": accuracy_interval,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "top5": top5,
    "images": lambda logits, labels: len(labels),
    "calibration_error": lambda logits, labels: round(calibration_error(logits, labels), 6),
}


def summary(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The metrics that are logged during training: those of config.schema.METRIC_NAMES."""
    return {name: OVERALL[name](logits, labels) for name in METRIC_NAMES}


def overall(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """The metrics of OVERALL that are not None."""
    found = {name: metric(logits, labels) for name, metric in OVERALL.items()}
    return {name: value for name, value in found.items() if value is not None}


def full(logits: Tensor, labels: Tensor, classes: tuple[str, ...], temperature: float | None = None) -> dict[str, Any]:
    """`overall` and the metrics of each class, as plain JSON values: the content of eval-NAME.json.

    `class_accuracy`: the recall of each class. Metrics of a class without images are None, and the precision of a class
    that is never predicted is 0. `confusion`: rows are actual classes, columns predicted ones.
    `calibration_error_scaled`: with logits / `temperature`; None without a temperature.
    """
    count = len(classes)
    confusion = (labels * count + logits.argmax(1)).bincount(minlength=count**2).view(count, count)
    right, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    recall, precision, f1 = (
        (right.double() / total.clamp(min=1)).tolist() for total in (actual, predicted, (actual + predicted) / 2)
    )
    by_class = {}
    for name, p, r, f, images in zip(classes, precision, recall, f1, actual.tolist(), strict=True):
        values = {"precision": p, "recall": r, "f1": f}
        by_class[name] = {key: round(v, 6) if images else None for key, v in values.items()} | {"images": images}
    return {
        **overall(logits, labels),
        "temperature": temperature,
        "calibration_error_scaled": temperature and round(calibration_error(logits, labels, temperature), 6),
        "class_accuracy": {name: values["recall"] for name, values in by_class.items()},
        "classes": by_class,
        "confusion": confusion.tolist(),
    }

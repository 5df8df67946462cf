"""Predictions -> numbers. Pure functions; scores come from torchmetrics."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from resnet_cifar.reporting.calibration import calibration_error


def summary(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy in 0..1 and plain cross-entropy of logits [n, classes] and labels [n]."""
    return {
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "accuracy": (logits.argmax(1) == labels).double().mean().item(),
    }


def overall(logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """`summary` and the other scores that are one number over all images; shares and errors are 0..1.

    `accuracy_interval`: Wilson's 95 % interval (1927). With fewer than five classes every image is in the top 5.
    """
    from scipy.stats import binomtest
    from torchmetrics.functional.classification import multiclass_accuracy

    count = logits.shape[1]
    top5 = multiclass_accuracy(logits, labels, num_classes=count, average="micro", top_k=min(5, count))
    right = int((logits.argmax(1) == labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(confidence_level=0.95, method="wilson")
    return {
        **summary(logits, labels),
        "accuracy_interval": [round(interval.low, 6), round(interval.high, 6)],
        "top5": round(top5.item(), 6),
        "images": len(labels),
        "calibration_error": round(calibration_error(logits, labels), 6),
    }


def full(logits: Tensor, labels: Tensor, classes: tuple[str, ...], temperature: float | None = None) -> dict[str, Any]:
    """`overall` and everything else that eval-SPLIT.json holds, as plain JSON values.

    `class_accuracy`: the share of a class's images that are recognised, which is its recall. A class without images
    has none of these (None), and a class that is never predicted has precision 0. `confusion`: rows are what images
    are, columns what they are taken for. `calibration_error_scaled`: with logits / `temperature`, where there is one.
    """
    from torchmetrics.functional import classification as scores

    count = len(classes)
    options = {"num_classes": count, "average": "none"}
    recall = scores.multiclass_recall(logits, labels, **options).tolist()
    precision = scores.multiclass_precision(logits, labels, **options).tolist()
    f1 = scores.multiclass_f1_score(logits, labels, **options).tolist()
    scaled = None if temperature is None else round(calibration_error(logits, labels, temperature), 6)

    def known(value: float, images: int) -> float | None:  # torchmetrics counts in float32: its last digits are dust
        return round(value, 6) if images else None

    by_class = {
        name: {"precision": known(p, n), "recall": known(r, n), "f1": known(f, n), "images": n}
        for name, p, r, f, n in zip(
            classes, precision, recall, f1, labels.bincount(minlength=count).tolist(), strict=True
        )
    }
    return {
        **overall(logits, labels),
        "temperature": temperature,
        "calibration_error_scaled": scaled,
        "class_accuracy": {name: values["recall"] for name, values in by_class.items()},
        "classes": by_class,
        "confusion": scores.multiclass_confusion_matrix(logits, labels, num_classes=count).tolist(),
    }

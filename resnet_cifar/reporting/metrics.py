"""Predictions -> numbers. Pure functions; scores come from torchmetrics."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def summary(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy in 0..1 and plain cross-entropy of logits [n, classes] and labels [n]."""
    return {
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "accuracy": (logits.argmax(1) == labels).double().mean().item(),
    }


def full(logits: Tensor, labels: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """`summary` and everything else that eval-SPLIT.json holds, as plain JSON values; shares and errors are 0..1.

    `accuracy_interval`: Wilson's 95 % interval (1927). `class_accuracy`: the share of a class's images that are
    recognised, which is its recall. `confusion`: rows are what images are, columns what they are taken for.
    `calibration_error`: the expected one over 15 bins of confidence (Guo et al. 2017). A class without images scores 0.
    """
    from scipy.stats import binomtest
    from torchmetrics.functional import classification as scores

    count = len(classes)
    options = {"num_classes": count, "average": "none"}
    recall = scores.multiclass_recall(logits, labels, **options).tolist()
    precision = scores.multiclass_precision(logits, labels, **options).tolist()
    f1 = scores.multiclass_f1_score(logits, labels, **options).tolist()
    top5 = scores.multiclass_accuracy(logits, labels, num_classes=count, average="micro", top_k=min(5, count))
    error = scores.multiclass_calibration_error(logits.double().softmax(1), labels, num_classes=count, n_bins=15)
    right = int((logits.argmax(1) == labels).sum())
    interval = binomtest(right, len(labels)).proportion_ci(confidence_level=0.95, method="wilson")
    # torchmetrics counts in float32, whose last digits are dust in a file.
    by_class = {
        name: {"precision": round(p, 6), "recall": round(r, 6), "f1": round(f, 6), "images": images}
        for name, p, r, f, images in zip(
            classes, precision, recall, f1, labels.bincount(minlength=count).tolist(), strict=True
        )
    }
    return {
        **summary(logits, labels),
        "accuracy_interval": [round(interval.low, 6), round(interval.high, 6)],
        "top5": round(top5.item(), 6),
        "images": len(labels),
        "class_accuracy": {name: values["recall"] for name, values in by_class.items()},
        "classes": by_class,
        "calibration_error": round(error.item(), 6),
        "confusion": scores.multiclass_confusion_matrix(logits, labels, num_classes=count).tolist(),
    }

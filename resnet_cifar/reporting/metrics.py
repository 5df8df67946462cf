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
    """`summary`, top-5 accuracy, and each class's accuracy (the share of its images that are recognised)."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_recall

    count = len(classes)
    top = min(5, count)
    by_class = multiclass_recall(logits, labels, num_classes=count, average="none")
    top5 = multiclass_accuracy(logits, labels, num_classes=count, average="micro", top_k=top)
    # torchmetrics counts in float32, whose last digits are dust in a file.
    return {
        **summary(logits, labels),
        "top5": round(top5.item(), 6),
        "images": len(labels),
        "class_accuracy": {name: round(value, 6) for name, value in zip(classes, by_class.tolist(), strict=True)},
    }

"""Predictions -> numbers. Pure functions, tested against scikit-learn's.

They are sums over the confusion matrix: importing torchmetrics or scikit-learn for them takes longer, 1.3 s of CPU time
and 100 MB, than scoring a small test split.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from resnet_cifar.evaluation.calibration import calibration_error


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
    likeliest = logits.topk(min(5, logits.shape[1]), dim=1).indices
    top5 = (likeliest == labels[:, None]).any(1).double().mean().item()
    return {
        **summary(logits, labels),
        "accuracy_interval": _wilson_interval(int((logits.argmax(1) == labels).sum()), len(labels)),
        "top5": round(top5, 6),
        "images": len(labels),
        "calibration_error": round(calibration_error(logits, labels), 6),
    }


def full(logits: Tensor, labels: Tensor, classes: tuple[str, ...], temperature: float | None = None) -> dict[str, Any]:
    """`overall` and everything else that eval-SPLIT.json holds, as plain JSON values.

    `class_accuracy`: the share of a class's images that are recognised, which is its recall. A class without images
    has none of these (None), and a class that is never predicted has precision 0. `confusion`: rows are what images
    are, columns what they are taken for. `calibration_error_scaled`: with logits / `temperature`, where there is one.
    """
    count = len(classes)
    confusion = (labels * count + logits.argmax(1)).bincount(minlength=count**2).view(count, count)
    right, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    recall, precision, f1 = (
        (right.double() / total.clamp(min=1)).tolist() for total in (actual, predicted, (actual + predicted) / 2)
    )
    scaled = None if temperature is None else round(calibration_error(logits, labels, temperature), 6)

    def known(value: float, images: int) -> float | None:
        return round(value, 6) if images else None

    by_class = {
        name: {"precision": known(p, n), "recall": known(r, n), "f1": known(f, n), "images": n}
        for name, p, r, f, n in zip(classes, precision, recall, f1, actual.tolist(), strict=True)
    }
    return {
        **overall(logits, labels),
        "temperature": temperature,
        "calibration_error_scaled": scaled,
        "class_accuracy": {name: values["recall"] for name, values in by_class.items()},
        "classes": by_class,
        "confusion": confusion.tolist(),
    }


def _wilson_interval(right: int, images: int) -> list[float]:
    """Wilson's 95 % interval of a share (1927), to six decimals."""
    z, share = NormalDist().inv_cdf(0.975), right / images
    centre, scale = share + z**2 / (2 * images), 1 + z**2 / images
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return [round(max(0.0, centre - half) / scale, 6), round(min(scale, centre + half) / scale, 6)]

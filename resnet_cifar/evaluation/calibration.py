"""Calibration error and temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks").

Pure functions of logits [n, classes] and labels [n].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # writing a report does not import torch
    from torch import Tensor

BINS = 15
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.01, 100.0


def calibration_error(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Expected calibration error of softmax(logits / temperature), 0..1, over 15 confidence bins of equal width."""
    confidence, predicted = (logits.double() / temperature).softmax(1).max(1)
    return reliability(confidence.numpy(), (predicted == labels).numpy()).error


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature T that minimizes the cross-entropy of softmax(logits / T), to six decimals.

    Cross-entropy is convex in 1 / T, so the minimum is the root of its derivative. None without a root between 0.01 and
    100, because every prediction is right or the logits are no better than chance.
    """
    from scipy.optimize import brentq

    # Margins of a right prediction are never positive, so rounding cannot change the sign of the slope.
    margins = logits.double() - logits.double().gather(1, labels[:, None])

    def slope(log_temperature: float) -> float:
        return ((margins / math.exp(log_temperature)).softmax(1) * margins).sum(1).mean().item()

    low, high = math.log(_MIN_TEMPERATURE), math.log(_MAX_TEMPERATURE)
    if not slope(low) > 0 > slope(high):
        return None
    return round(math.exp(brentq(slope, low, high, xtol=1e-12)), 6)


class Reliability(NamedTuple):
    """Mean confidence, accuracy, number of images and center (`middle`) of each nonempty confidence bin."""

    confidence: np.ndarray
    accuracy: np.ndarray
    images: np.ndarray
    middle: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |confidence - accuracy|, weighted by images."""
        return float((np.abs(self.confidence - self.accuracy) * self.images).sum() / self.images.sum())


def reliability(confidence: np.ndarray, correct: np.ndarray) -> Reliability:
    """The bins of `calibration_error`; `confidence`: float [n], `correct`: bool [n]."""
    bins = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    filled = images > 0
    means = (np.bincount(bins, values, BINS)[filled] / images[filled] for values in (confidence, correct))
    return Reliability(*means, images[filled], (np.flatnonzero(filled) + 0.5) / BINS)

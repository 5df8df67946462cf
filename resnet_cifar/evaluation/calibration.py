"""Whether probabilities mean what they say, and one number that mends them (Guo et al. 2017, "On Calibration of
Modern Neural Networks"). Pure functions of logits [n, classes] and labels [n]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # a report of a folder needs no torch
    from torch import Tensor

BINS = 15
_LOWEST, _HIGHEST = 0.01, 100.0


def calibration_error(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """The expected calibration error of softmax(logits / temperature), 0..1, over 15 bins of confidence."""
    sure, predicted = (logits.double() / temperature).softmax(1).max(1)
    return reliability(sure.numpy(), (predicted == labels).numpy()).error


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """The temperature T that minimises the cross-entropy of softmax(logits / T), to six decimals.

    Cross-entropy is convex in 1 / T, so its minimum is where its slope changes sign. There is none between 0.01 and
    100 where every image is right (the sharper, the better) or where the logits are no better than chance: None.
    """
    from scipy.optimize import brentq

    # Of an image that is right no margin is positive, so rounding cannot turn the sign of the slope.
    margins = logits.double() - logits.double().gather(1, labels[:, None])

    def slope(log_temperature: float) -> float:
        return ((margins / math.exp(log_temperature)).softmax(1) * margins).sum(1).mean().item()

    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    if not slope(low) > 0 > slope(high):
        return None
    return round(math.exp(brentq(slope, low, high, xtol=1e-12)), 6)


class Reliability(NamedTuple):
    """Of each bin of confidence that has images: their mean confidence, the share that is right, and their number.

    `middle`: of the bin.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    images: np.ndarray
    middle: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the distance of the two, weighed by images."""
        return float((np.abs(self.confidence - self.accuracy) * self.images).sum() / self.images.sum())


def reliability(sure: np.ndarray, right: np.ndarray) -> Reliability:
    """The bins that `calibration_error` compares, of confidences float [n] and bool [n]."""
    bins = np.clip((sure * BINS).astype(np.int64), 0, BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    filled = images > 0
    means = (np.bincount(bins, values, BINS)[filled] / images[filled] for values in (sure, right))
    return Reliability(*means, images[filled], (np.flatnonzero(filled) + 0.5) / BINS)

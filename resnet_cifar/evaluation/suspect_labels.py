"""Suspect labels by confident learning (Northcutt, Jiang & Chuang 2021, JAIR 70): labels that the model contradicts.

A class is predicted confidently if its probability reaches the class's threshold, the mean probability that images of
this label have of it. A label is suspect if the most probable of the confidently predicted classes is another one; as
in cleanlab, only if the label is not the predicted class either.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_ROWS = 4096  # per chunk: with a thousand classes in float64, 32 MB


class SuspectLabels(NamedTuple):
    """`rows`, int64 [k], by ascending margin: `label_probability` minus `predicted_probability`, float64 [k] each."""

    rows: np.ndarray
    label_probability: np.ndarray
    predicted_probability: np.ndarray


def find_suspect_labels(logits: np.ndarray, labels: np.ndarray, temperature: float | None = None) -> SuspectLabels:
    """The suspect ones of `labels`, int64 [n]; probabilities are softmax(logits [n, classes] / temperature).

    Predictions should be out-of-sample: a model that was trained on a wrong label tends to predict it.
    """
    scale, classes = temperature or 1.0, logits.shape[1]
    chunks = [np.arange(start, min(start + _ROWS, len(labels))) for start in range(0, len(labels), _ROWS)]
    own = np.concatenate([_softmax(logits[rows], scale)[np.arange(len(rows)), labels[rows]] for rows in chunks])
    sizes = np.bincount(labels, minlength=classes)
    thresholds = np.where(sizes, np.bincount(labels, own, minlength=classes) / np.maximum(sizes, 1), np.inf)
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    found, probability = [np.empty(0, np.int64)], [np.empty(0)]
    for start in range(0, len(wrong), _ROWS):
        rows = wrong[start : start + _ROWS]
        probabilities = _softmax(logits[rows], scale)
        confident = np.where(probabilities >= thresholds, probabilities, 0)
        is_suspect = confident.any(1) & (confident.argmax(1) != labels[rows])
        found.append(rows[is_suspect])
        probability.append(probabilities[is_suspect].max(1))
    rows, predicted = np.concatenate(found), np.concatenate(probability)
    order = np.argsort(own[rows] - predicted, kind="stable")
    return SuspectLabels(rows[order], own[rows][order], predicted[order])


def _softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)

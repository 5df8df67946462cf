"""The predicted class and confidence of every image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

_ROWS = 4096  # per chunk: with a thousand classes in float64, 32 MB


@dataclass(frozen=True)
class PredictionTable:
    """`labels` and `predicted` classes, int64 [n]; `confidence`: probability of the predicted class, float64 [n].

    `index`: positions of the images in the source's split, int64 [n], distinct.
    """

    index: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is right, bool [n]."""
        return self.predicted == self.labels

    def counts(self, classes: int) -> np.ndarray:
        """The confusion matrix, int64 [classes, classes]: rows are actual, columns predicted classes."""
        return np.bincount(self.labels * classes + self.predicted, minlength=classes**2).reshape(classes, classes)


def from_logits(
    logits: np.ndarray, labels: np.ndarray, index: np.ndarray, temperature: float | None = None
) -> PredictionTable:
    """Predictions by softmax(logits / temperature); logits [n, classes]."""
    return PredictionTable(index, labels, logits.argmax(1), max_probability(logits, temperature or 1.0))


def max_probability(logits: np.ndarray, temperature: float) -> np.ndarray:
    """The largest of softmax(logits / temperature), float64 [n]."""
    confidence = np.empty(len(logits))
    for start in range(0, len(logits), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        confidence[start : start + _ROWS] = 1 / np.exp((rows - rows.max(1, keepdims=True)) / temperature).sum(1)
    return confidence


def read_predictions(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(logits [n, classes], labels [n], index [n]) of a predictions-NAME.parquet; None if missing or damaged."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file, columns=["index", "label", "logits"])
        logits = table["logits"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        return logits, table["label"].to_numpy(), table["index"].to_numpy()
    except (OSError, ValueError, KeyError):  # pyarrow's errors derive from these
        return None

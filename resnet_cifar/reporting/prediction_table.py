"""What a model took each image for and how sure it was: all that most of a report needs of its predictions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

_ROWS = 4096  # images at a time: a thousand classes in float64 are then 32 MB


@dataclass(frozen=True)
class PredictionTable:
    """Of n images: `labels` and `predicted`, int64 [n]; `sure`, the probability of what is predicted, float64 [n].

    `index`: which image of the source's split each one is, int64 [n], no two the same.
    """

    index: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    sure: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> np.ndarray:
        """Whether each image is recognised, bool [n]."""
        return self.predicted == self.labels

    def counts(self, classes: int) -> np.ndarray:
        """The confusion matrix, int64 [classes, classes]: rows are what images are, columns what they are taken for."""
        return np.bincount(self.labels * classes + self.predicted, minlength=classes**2).reshape(classes, classes)


def of(logits: np.ndarray, labels: np.ndarray, index: np.ndarray, temperature: float | None = None) -> PredictionTable:
    """The guesses that softmax(logits / temperature) makes; logits [n, classes]."""
    return PredictionTable(index, labels, logits.argmax(1), confidence(logits, temperature or 1.0))


def confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """The largest of softmax(logits / temperature), float64 [n]."""
    sure = np.empty(len(logits))
    for start in range(0, len(logits), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        sure[start : start + _ROWS] = 1 / np.exp((rows - rows.max(1, keepdims=True)) / temperature).sum(1)
    return sure


def read(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(logits [n, classes], labels [n], index [n]) of a predictions-NAME.parquet; None where it lacks or is damaged."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file, columns=["index", "label", "logits"])
        logits = table["logits"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        return logits, table["label"].to_numpy(), table["index"].to_numpy()
    except (OSError, ValueError, KeyError):  # pyarrow's own errors are these as well
        return None

"""The predicted class and confidence of every image, and the labels that they make suspect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_cifar.evaluation.suspect_labels import SuspectLabels, find_suspect_labels

_ROWS = 4096  # per chunk: with a thousand classes in float64, 32 MB


@dataclass(frozen=True)
class PredictionTable:
    """`labels` and `predicted` classes, int64 [n]; `confidence`: probability of the predicted class, float64 [n].

    `index`: positions of the images in the source's split, int64 [n], distinct; `file_names`: as in `ImageDataset`.
    """

    index: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    suspects: SuspectLabels
    file_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def correct(self) -> np.ndarray:
        """Whether each prediction is right, bool [n]."""
        return self.predicted == self.labels

    def counts(self, classes: int) -> np.ndarray:
        """The confusion matrix, int64 [classes, classes]: rows are actual, columns predicted classes."""
        return np.bincount(self.labels * classes + self.predicted, minlength=classes**2).reshape(classes, classes)

    def place(self, row: int, split: str) -> str:
        """The image's file, or the split and its index if it has none: `cats/a.jpg` or `test 17`."""
        return self.file_name(row) or f"{split} {self.index[row]}"

    def file_name(self, row: int) -> str:
        """The image's file, or ""."""
        return self.file_names[row] if self.file_names else ""


def from_logits(
    logits: np.ndarray,
    labels: np.ndarray,
    index: np.ndarray,
    temperature: float | None = None,
    file_names: Sequence[str] = (),
) -> PredictionTable:
    """Predictions by softmax(logits / temperature); logits [n, classes]."""
    confidence, suspects = max_probability(logits, temperature or 1.0), find_suspect_labels(logits, labels, temperature)
    return PredictionTable(index, labels, logits.argmax(1), confidence, suspects, file_names)


def max_probability(logits: np.ndarray, temperature: float) -> np.ndarray:
    """The largest of softmax(logits / temperature), float64 [n]."""
    confidence = np.empty(len(logits))
    for start in range(0, len(logits), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        confidence[start : start + _ROWS] = 1 / np.exp((rows - rows.max(1, keepdims=True)) / temperature).sum(1)
    return confidence


def read_image_positions(file: Path) -> np.ndarray | None:
    """The ascending positions of a predictions-NAME.parquet's images, int64 [n]; None if missing or damaged."""
    import pyarrow.parquet

    try:
        return np.sort(pyarrow.parquet.read_table(file, columns=["index"])["index"].to_numpy())
    except (OSError, ValueError, KeyError):  # pyarrow's errors derive from these
        return None


class StoredPredictions(NamedTuple):
    """The content of a predictions-NAME.parquet: logits [n, classes], labels [n], index [n], and file names."""

    logits: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    file_names: list[str]


def read_predictions(file: Path) -> StoredPredictions | None:
    """Reads a predictions-NAME.parquet, also of a version without file names; None if missing or damaged."""
    import pyarrow.parquet

    try:
        has_names = "file" in pyarrow.parquet.read_schema(file).names
        table = pyarrow.parquet.read_table(file, columns=["index", "label", "logits", *(["file"] * has_names)])
        logits = table["logits"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        names = table["file"].to_pylist() if has_names else []
        return StoredPredictions(logits, table["label"].to_numpy(), table["index"].to_numpy(), names)
    except (OSError, ValueError, KeyError):  # pyarrow's errors derive from these
        return None

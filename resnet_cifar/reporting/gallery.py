"""The example images of a report: which ones are shown, and the file that stores them.

An evaluation has all images at hand and stores a few; the report reads these from the run directory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from resnet_cifar import rng
from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.reporting import html_page
from resnet_cifar.reporting.prediction_arrays import PredictionTable

ReadImages = Callable[[np.ndarray], np.ndarray]  # indices int64 [k] -> pixels uint8 [k, height, width, 3]

MAX_IMAGES = 600  # of a page
_BYTES = 8 << 20  # of the stored images, uncompressed
_SIDE = 128  # pixels: larger images are reduced
_LOSSLESS = 40  # pixels: up to this size PNG is about as small as a good JPEG
_CONFIDENT, _RANDOM, SUSPECTS = 48, 24, 24
_CHUNK = 32  # large images in memory


class GalleryRows(NamedTuple):
    """Selected rows, int64: the most `confident` mistakes, random `right` and `wrong` ones, some of all `cells`, and
    those of the most `suspect` labels.
    """

    confident: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    cells: np.ndarray
    suspect: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """The union, ascending."""
        return np.unique(np.concatenate(self))


def select(predictions: PredictionTable, limit: int) -> GalleryRows:
    """Selects at most `limit` images, deterministically.

    Every cell of the confusion matrix contributes its most confident image before any contributes a second, the largest
    cells first, so that every clicked cell shows an image if there is room.
    """
    by_confidence = np.argsort(-predictions.confidence, kind="stable")
    wrong, right = (by_confidence[predictions.correct[by_confidence] == is_right] for is_right in (False, True))
    confident = wrong[: min(_CONFIDENT, limit // 4)]
    some = min(_RANDOM, limit // 8)
    drawn = [_sample(rows, some, purpose) for rows, purpose in ((right, "right"), (wrong, "wrong"))]
    suspect = predictions.suspects.rows[: min(SUSPECTS, limit // 8)]
    taken = np.unique(np.concatenate([confident, *drawn, suspect]))
    cells = (
        predictions.labels * (max(predictions.labels.max(), predictions.predicted.max()) + 1) + predictions.predicted
    )
    in_turn = _in_turn(by_confidence, cells, predictions.correct)
    fresh = ~np.isin(in_turn, taken)
    # Images that are shown anyway count for their cells too.
    within = np.cumsum(fresh) <= limit - len(taken)
    return GalleryRows(confident, *drawn, in_turn[within], suspect)


def _sample(rows: np.ndarray, count: int, purpose: str) -> np.ndarray:
    return np.sort(rows)[rng.permutation(0, f"gallery {purpose}", 0, len(rows))[:count]]


def _in_turn(rows: np.ndarray, cells: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Orders `rows`: the first of every cell before the second of any, mistakes first, then the largest cells."""
    of_row = cells[rows]
    order = np.argsort(of_row, kind="stable")
    _, start, size = np.unique(of_row[order], return_index=True, return_counts=True)
    turn, many = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    turn[order] = np.arange(len(rows)) - np.repeat(start, size)
    many[order] = np.repeat(size, size)
    return rows[np.lexsort((of_row, -many, right[rows], turn))]


def capacity(height: int, width: int) -> int:
    """Number of images of this stored size that a page holds."""
    height, width = _shown_size(height, width)
    return min(MAX_IMAGES, _BYTES // (height * width * 3))


def save_images(
    file: Path, predictions: PredictionTable, size: tuple[int, int], read: ReadImages, suspects_only: bool = False
) -> None:
    """Stores the selected images of `size` (height, width), reduced if they are large."""
    chosen = select(predictions, capacity(*size))
    rows = np.sort(chosen.suspect) if suspects_only else chosen.rows
    if not len(rows):
        return
    parts = [_small(read(rows[start : start + _CHUNK])) for start in range(0, len(rows), _CHUNK)]
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file, flush=False) as aside, aside.open("wb") as stream:
        np.savez_compressed(stream, index=predictions.index[rows], images=np.concatenate(parts))


class SavedImages(NamedTuple):
    """Stored images, uint8 [k, height, width, 3], and their positions `index` in the split."""

    index: np.ndarray
    images: np.ndarray

    def places(self, predictions: PredictionTable) -> dict[int, int]:
        """Row of the predictions -> position among the stored images."""
        rows = {image: row for row, image in enumerate(predictions.index.tolist())}
        return {rows[image]: place for place, image in enumerate(self.index.tolist()) if image in rows}


def load_images(file: Path) -> SavedImages | None:
    """The stored images; None if the file is missing or damaged."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            return SavedImages(kept["index"], kept["images"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def data_url(image: np.ndarray) -> str:
    """A data: URL of uint8 [height, width, 3]: PNG if it is small, otherwise JPEG."""
    is_small = max(image.shape[:2]) <= _LOSSLESS
    return html_page.image_url(image) if is_small else html_page.image_url(image, "jpeg", quality=88)


def _shown_size(height: int, width: int) -> tuple[int, int]:
    shrink = min(1.0, _SIDE / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def _small(images: np.ndarray) -> np.ndarray:
    height, width = _shown_size(*images.shape[1:3])
    if (height, width) == images.shape[1:3]:
        return images
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), Image.BOX)) for image in images])

"""The pictures of a scoring that its page shows: which they are, and the small file that keeps them.

Whoever scores has the images at hand and keeps the few; whoever writes the page reads them from the run folder alone.
"""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from resnet_cifar import rng
from resnet_cifar.atomic_io import atomic_write
from resnet_cifar.reporting.prediction_table import PredictionTable

Read = Callable[[np.ndarray], np.ndarray]  # of images, int64 [k], their pixels, uint8 [k, height, width, 3]

MOST = 600  # pictures of a page
_BYTES = 8 << 20  # of a file of pictures, before it is packed
_SIDE = 128  # pixels: larger pictures are shown smaller
_LOSSLESS = 40  # pixels: up to here a PNG is as small as a JPEG that shows no traces
_SUREST, _RANDOM = 48, 24
_AT_A_TIME = 32  # large images in memory


class GalleryRows(NamedTuple):
    """Rows of a scoring, int64: the `surest` mistakes, random `right` and `wrong` ones, and some of all `cells`."""

    surest: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    cells: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All of them once, ascending."""
        return np.unique(np.concatenate(self))


def choose(guesses: PredictionTable, limit: int) -> GalleryRows:
    """At most `limit` pictures, the same for the same guesses.

    Every cell of the confusion matrix gives its surest picture before any gives a second, the largest cells first: who
    clicks one finds something wherever there is room.
    """
    by_sureness = np.argsort(-guesses.sure, kind="stable")
    wrong, right = (by_sureness[guesses.right[by_sureness] == is_right] for is_right in (False, True))
    surest = wrong[: min(_SUREST, limit // 4)]
    some = min(_RANDOM, limit // 8)
    drawn = [_sample(rows, some, purpose) for rows, purpose in ((right, "right"), (wrong, "wrong"))]
    taken = np.unique(np.concatenate([surest, *drawn]))
    cells = guesses.labels * (max(guesses.labels.max(), guesses.predicted.max()) + 1) + guesses.predicted
    in_turn = _in_turn(by_sureness, cells, guesses.right)
    fresh = ~np.isin(in_turn, taken)
    # What is shown anyway counts for its cell too.
    within = np.cumsum(fresh) <= limit - len(taken)
    return GalleryRows(surest, *drawn, in_turn[within])


def _sample(rows: np.ndarray, count: int, purpose: str) -> np.ndarray:
    return np.sort(rows)[rng.permutation(0, f"gallery {purpose}", 0, len(rows))[:count]]


def _in_turn(rows: np.ndarray, cells: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`rows` so that each cell's first come before any cell's second, mistakes first, then the largest cells."""
    of_row = cells[rows]
    order = np.argsort(of_row, kind="stable")
    _, start, size = np.unique(of_row[order], return_index=True, return_counts=True)
    turn, many = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    turn[order] = np.arange(len(rows)) - np.repeat(start, size)
    many[order] = np.repeat(size, size)
    return rows[np.lexsort((of_row, -many, right[rows], turn))]


def room(height: int, width: int) -> int:
    """How many pictures of this stored size a page keeps."""
    height, width = _shown_size(height, width)
    return min(MOST, _BYTES // (height * width * 3))


def keep(file: Path, guesses: PredictionTable, size: tuple[int, int], read: Read) -> None:
    """Writes the pictures that are chosen of images of `size` (height, width), made small where they are large."""
    rows = choose(guesses, room(*size)).rows
    parts = [_small(read(rows[start : start + _AT_A_TIME])) for start in range(0, len(rows), _AT_A_TIME)]
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file, flush=False) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, index=guesses.index[rows], images=np.concatenate(parts))


class SavedImages(NamedTuple):
    """What `keep` has written: of images `index` of the split the pictures, uint8 [k, height, width, 3]."""

    index: np.ndarray
    images: np.ndarray

    def places(self, guesses: PredictionTable) -> dict[int, int]:
        """Row of the guesses -> place among the pictures."""
        rows = {image: row for row, image in enumerate(guesses.index.tolist())}
        return {rows[image]: place for place, image in enumerate(self.index.tolist()) if image in rows}


def read(file: Path) -> SavedImages | None:
    """The pictures, or None where none were kept (by a scoring that wrote no page, or one that was damaged)."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            return SavedImages(kept["index"], kept["images"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def address(image: np.ndarray) -> str:
    """A data: address of the picture, uint8 [height, width, 3], to the pixel where it is small."""
    stream, kind = io.BytesIO(), "png" if max(image.shape[:2]) <= _LOSSLESS else "jpeg"
    Image.fromarray(image).save(stream, kind, optimize=True, **({"quality": 88} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _shown_size(height: int, width: int) -> tuple[int, int]:
    shrink = min(1.0, _SIDE / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def _small(images: np.ndarray) -> np.ndarray:
    height, width = _shown_size(*images.shape[1:3])
    if (height, width) == images.shape[1:3]:
        return images
    return np.stack([np.asarray(Image.fromarray(image).resize((width, height), Image.BOX)) for image in images])

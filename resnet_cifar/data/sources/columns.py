"""Finds the image and the label column of a `datasets` data set and decodes it."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from resnet_cifar.data.sources import Splits
from resnet_cifar.recipe import Mistake

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_CHUNK = 2_000
_NAMED = 5  # broken images named in a sentence


def decode(loaded: DatasetDict, source: str) -> Splits:
    """Decodes the splits `train` and `test` (or, without one, `validation`). Raises Mistake, naming what is missing."""
    held_out = next((name for name in ("test", "validation", "valid") if name in loaded), None)
    if "train" not in loaded or held_out is None:
        raise Mistake(f"data.source {source!r} has the splits {sorted(loaded)}: it should have train and test")
    image, label = _columns(loaded["train"], source)
    classes = _class_names(loaded["train"], label)
    images, labels = {}, {}
    for split, name in (("train", "train"), ("test", held_out)):
        images[split] = _images(loaded[name], image, f"{source} {name}")
        labels[split] = _labels(loaded[name], label)
        outside = np.flatnonzero((labels[split] < 0) | (labels[split] >= len(classes)))
        if outside.size:
            raise Mistake(
                f"data.source {source!r}: the labels of {name} images {outside[:_NAMED].tolist()} lie outside the "
                f"{len(classes)} classes: mend the {label} column"
            )
    return Splits(images, labels, classes)


def _columns(split: Dataset, source: str) -> tuple[str, str]:
    """The image column, and the label column with the most classes (CIFAR-100 has 20 coarse and 100 fine ones)."""
    from datasets import ClassLabel
    from datasets import Image as ImageFeature

    images = [name for name, feature in split.features.items() if isinstance(feature, ImageFeature)]
    labels = {name: f.num_classes for name, f in split.features.items() if isinstance(f, ClassLabel)}
    if not labels:
        whole = [name for name in ("label", "labels") if "int" in str(getattr(split.features.get(name), "dtype", ""))]
        labels = dict.fromkeys(whole, 0)
    if len(images) != 1 or not labels:
        raise Mistake(
            f"data.source {source!r} has the columns {split.column_names}: it should have one image column and a "
            "label column"
        )
    return images[0], max(labels, key=labels.__getitem__)


def _class_names(split: Dataset, label: str) -> tuple[str, ...]:
    names = getattr(split.features[label], "names", None)
    return tuple(names) if names else tuple(str(number) for number in range(int(_labels(split, label).max()) + 1))


def _labels(split: Dataset, label: str) -> np.ndarray:
    """int64 [n], -1 where there is none; the images are not touched."""
    column = split.select_columns([label]).with_format("arrow")[:][label]
    return column.fill_null(-1).to_numpy().astype(np.int64)


def _images(split: Dataset, column: str, where: str) -> np.ndarray:
    """uint8 [n, height, width, 3] of one size."""
    from datasets import Image as ImageFeature

    encoded = split.cast_column(column, ImageFeature(decode=False)).select_columns([column])
    size: tuple[int, int] | None = None
    whole: np.ndarray | None = None
    broken: list[int] = []
    with ThreadPoolExecutor() as threads:  # PIL decodes outside the interpreter's lock
        for start in range(0, len(encoded), _CHUNK):
            rows = encoded[start : start + _CHUNK][column]
            for offset, pixels in enumerate(threads.map(_pixels, rows)):
                if pixels is None:
                    broken.append(start + offset)
                    continue
                if whole is None:
                    size = pixels.shape[:2]
                    whole = np.empty((len(encoded), *size, 3), dtype=np.uint8)
                if pixels.shape[:2] != size:
                    raise Mistake(
                        f"{where} image {start + offset} is {pixels.shape[1]}x{pixels.shape[0]} where others are "
                        f"{size[1]}x{size[0]}: resize the images to one size"
                    )
                whole[start + offset] = pixels
    if broken:
        more = f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise Mistake(f"{where} images {broken[:_NAMED]}{more} do not decode: mend or remove them")
    if whole is None:
        raise Mistake(f"{where} holds no images: take a data set that does")
    return whole


def _pixels(row: dict[str, Any]) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(row["bytes"]) if row["bytes"] is not None else row["path"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, TypeError):
        return None

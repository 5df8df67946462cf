"""The sections of a dataset report as plain values for its template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_cifar.config.schema import Recipe
from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.data.prepared_data import ImageData
from resnet_cifar.reporting import class_balance
from resnet_cifar.reporting.dataset_report import charts, near_duplicates, samples
from resnet_cifar.reporting.dataset_report.augmentation_preview import Training
from resnet_cifar.reporting.dataset_report.image_headers import Header, Originals
from resnet_cifar.reporting.dataset_report.near_duplicates import Duplicates, Pair
from resnet_cifar.reporting.dataset_report.pixel_stats import Statistics

_FEW_CLASSES = 40  # whose bars are looked at one by one
_MOST_SIZES = 8
_MOST_PAIRS = 12  # of a kind
_AUGMENTED, _EPOCHS = 20, 7  # images, each of another class, and how often each
_MOST_NAMES = 40  # of classes that are left out
_AUGMENTED_LONGEST = 96  # pixels
_KINDS = {
    "labels": "Same image, different labels",
    "test": "Test images with a duplicate in training or validation",
    "parts": "Validation images with a duplicate in training",
    "within": "Within one split",
}


def parts(data: ImageData, recipe: Recipe) -> dict[str, ImageDataset]:
    """The splits that have images; with data.overfit_images, validation repeats train and is left out."""
    found = {"train": data.train, "validation": data.validation, "test": data.test}
    if recipe.data.overfit_images:
        del found["validation"]
    return {name: images for name, images in found.items() if len(images)}


def balance(parts: dict[str, ImageDataset], classes: Sequence[str]) -> dict[str, Any]:
    """Images of each class in each split, and how wide the bars beside the numbers are."""
    counts = {name: np.bincount(images.labels.numpy(), minlength=len(classes)) for name, images in parts.items()}
    chart = charts.class_sizes(counts) if len(classes) > _FEW_CLASSES else ""
    return {**class_balance.table(counts, classes), "chart": chart}


def grid(images: ImageDataset, shown: Sequence[int], classes: Sequence[str], found: Statistics) -> list[dict[str, Any]]:
    """For each shown class its mean image and evenly spaced training images, each with its place in the source."""
    labels = images.labels.numpy()
    sizes = np.bincount(labels, minlength=len(classes))
    rows = []
    for label, mean in zip(shown, found.class_means, strict=True):
        chosen = samples.rows(labels, label, len(shown))
        files = map(images.file_name, chosen)
        cells = list(zip(images.indices[chosen].tolist(), files, samples.pictures(images, chosen), strict=True))
        rows.append(
            {"name": classes[label], "images": int(sizes[label]), "mean": samples.thumbnail(mean), "cells": cells}
        )
    return rows


def duplicates(found: Duplicates, parts: dict[str, ImageDataset], classes: Sequence[str]) -> dict[str, Any]:
    """The counts, and the best pairs of each kind as pictures side by side."""
    pairs: dict[str, list[Pair]] = {kind: [] for kind in _KINDS}
    for pair in found.pairs:
        pairs[pair.kind].append(pair)
    kinds = [
        {
            "title": title,
            "kind": kind,
            "count": len(pairs[kind]),
            "pairs": [_pair(pair, parts, classes) for pair in pairs[kind][:_MOST_PAIRS]],
        }
        for kind, title in _KINDS.items()
        if pairs[kind]
    ]
    names = list(parts)
    table = [
        (
            one,
            found.compared[one],
            [(found.exact[one, other], found.near[one, other]) for other in names],
            found.elsewhere[one],
        )
        for one in names
    ]
    return {
        "kinds": kinds,
        "names": names,
        "table": table,
        "unreliable": found.unreliable,
        "flat": found.flat,
        "complete": found.complete,
        "candidates": near_duplicates.MAX_CANDIDATES,
        "compared": sum(found.compared.values()),
        "images": sum(found.images.values()),
        "threshold": near_duplicates.THRESHOLD,
        "side": near_duplicates.SIDE,
        "shift": near_duplicates.SHIFT,
        "agreements": _agreements(found.pairs),
    }


def _agreements(pairs: Sequence[Pair]) -> list[tuple[str, int]]:
    """How many pairs agree how well: all of them, for the first step is open below and the last one above."""
    values = np.array([pair.agreement for pair in pairs if not pair.exact])
    steps = np.arange(near_duplicates.THRESHOLD, 0.99, 0.03).round(2)
    counts = np.bincount(np.digitize(values, steps[1:]), minlength=len(steps)).tolist()
    names = [f"{low:.2f} to {min(low + 0.03, 1):.2f}" for low in steps]
    return [
        ("identical", sum(pair.exact for pair in pairs)),
        *reversed(list(zip(names, counts, strict=True))),
    ]


def _pair(pair: Pair, parts: dict[str, ImageDataset], classes: Sequence[str]) -> dict[str, Any]:
    sides = []
    for (part, row), label in zip((pair.one, pair.other), pair.labels, strict=True):
        images = parts[part]
        [picture] = samples.pictures(images, np.array([row]))
        side = {"picture": picture, "place": f"{part} {images.indices[row]}", "file": images.file_name(row)}
        sides.append({**side, "label": classes[label]})
    how = "identical" if pair.exact else f"similarity {pair.agreement:.3f}"
    return {"sides": sides, "how": f"{how}, mirrored" if pair.mirrored else how}


def originals(found: Sequence[Originals], source: str) -> dict[str, Any]:
    """Sizes, formats and modes as tables, a chart where there are several sizes, and the ends of the file sizes."""
    root = Path(source).expanduser()
    sizes: Counter[tuple[int, int]] = sum((split.sizes for split in found), Counter())
    total = sum(sizes.values())
    common = [(f"{width} x {height}", count, f"{count / total:.1%}") for (width, height), count in _ranked(sizes)]
    formats: Counter[tuple[str, str]] = sum((split.formats for split in found), Counter())
    widths, heights = (sorted(side) for side in zip(*sizes, strict=True)) if sizes else ([0], [0])
    return {
        "splits": [(split.name, split.pictures, split.read) for split in found],
        "sizes": common[:_MOST_SIZES],
        "more_sizes": len(common) - len(common[:_MOST_SIZES]),
        "ranges": (widths[0], widths[-1], heights[0], heights[-1]),
        "chart": charts.image_sizes(sizes) if len(sizes) > 1 else "",
        "formats": [(*name, count) for name, count in _ranked(formats)],
        "turned": sum(split.turned for split in found),
        "nbytes": sum(split.nbytes for split in found) / max(1, sum(split.read for split in found)),
        "largest": _files(found, lambda split: split.largest, -1, root),
        "smallest": _files(found, lambda split: split.smallest, 1, root),
    }


def _ranked(counter: Counter[Any]) -> list[tuple[Any, int]]:
    return sorted(counter.items(), key=lambda pair: (-pair[1], pair[0]))


def _files(
    found: Sequence[Originals], ends: Callable[[Originals], list[Header]], sign: int, root: Path
) -> list[tuple[str, ...]]:
    """The most extreme of all splits: where, file, bytes, size, format and mode."""
    ranked = sorted(
        ((split.name, one) for split in found for one in ends(split)), key=lambda each: sign * each[1].nbytes
    )
    files = []
    for name, one in ranked[: max(len(ends(split)) for split in found)]:
        file = Path(one.file)
        shown = str(file.relative_to(root) if file.is_relative_to(root) else file) if one.file else ""
        size = f"{one.size[0]} x {one.size[1]}"
        files.append((f"{name} {one.index}", shown, f"{one.nbytes:,}", size, f"{one.format} {one.mode}"))
    return files


def augmented(training: Training, data: ImageData, shown: Sequence[int]) -> dict[str, Any]:
    """A training image of each class, and what training makes of it in its first epochs, with the labels it learns.

    Of many classes evenly spaced ones; `left_out` and `more` are the other ones' first names, and how many come after.
    `sides`: the sizes of the inputs, pixels.
    """
    labels = data.train.labels.numpy()
    few = [shown[i * len(shown) // _AUGMENTED] for i in range(_AUGMENTED)] if len(shown) > _AUGMENTED else shown
    left_out = [data.classes[label] for label in np.setdiff1d(labels, few)]
    rows, sides = [], set()
    for label in few:
        row = samples.rows(labels, label, len(shown))[:1]
        views = training.views(int(row[0]), _EPOCHS)
        sides |= {len(view.image) for view in views}
        rows.append(
            {
                "name": data.classes[label],
                "index": int(data.train.indices[row[0]]),
                "picture": samples.pictures(data.train, row)[0],
                "views": [
                    (samples.thumbnail(view.image, _AUGMENTED_LONGEST), _shares(view.shares, data)) for view in views
                ],
            }
        )
    return {
        "rows": rows,
        "sides": sorted(sides),
        "left_out": left_out[:_MOST_NAMES],
        "more": len(left_out) - len(left_out[:_MOST_NAMES]),
        "epochs": _EPOCHS,
        "mean": training.mean,
        "std": training.std,
    }


def _shares(shares: list[tuple[int, float]], data: ImageData) -> str:
    if len(shares) == 1:
        return data.classes[shares[0][0]]
    return " + ".join(f"{data.classes[label]} {share:.0%}" for label, share in shares)

"""What a model confuses, as figures: pure functions of predictions, drawn without pyplot and without a screen.

matplotlib and seaborn are imported where they draw: they take a second or two, and training does not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Read = Callable[[np.ndarray], np.ndarray]  # of images, int64 [k], their pixels, uint8 [k, height, width, 3]

_READABLE = 30  # classes whose counts and names still fit
_GRID = (4, 8)  # rows and columns of the gallery
_ENLARGED = 160  # pixels of an image in the gallery, at the least
_INK, _PALE, _WRONG = "#222222", "#777777", "#b3261e"


def draw(
    folder: Path,
    probabilities: np.ndarray,
    labels: np.ndarray,
    read: Read,
    classes: Sequence[str],
) -> dict[str, Path]:
    """Writes the two figures into `folder`, as PNG files: name -> file. Shapes are those of the functions below."""
    folder.mkdir(exist_ok=True)
    figures = {
        "confusion": confusion(probabilities.argmax(1), labels, classes),
        "mistakes": mistakes(probabilities, labels, read, classes),
    }
    files = {}
    for name, figure in figures.items():
        files[name] = folder / f"{name}.png"
        aside = folder / f"{name}.png.writing"
        figure.savefig(aside, format="png", dpi=120, facecolor="white")
        aside.replace(files[name])
    return files


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts, shaded by their share of the row. `predicted`, `labels`: int [n]; rows are what images are.

    The shade goes with the root of the share, so that rare confusions are seen. Beyond 30 classes only the shares are
    drawn, and every so many names.
    """
    import seaborn
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(classes)
    counts = np.bincount(labels * count + predicted, minlength=count**2).reshape(count, count)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    fits = count <= _READABLE
    side = 2.6 + 0.62 * count if fits else 11.0
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    axes = figure.subplots()
    every = 1 if fits else -(-count // 50)
    names = [_plain(name) if index % every == 0 else "" for index, name in enumerate(classes)]
    seaborn.heatmap(
        shares,
        ax=axes,
        norm=PowerNorm(0.5, 0, 1),
        cmap="Blues",
        square=True,
        annot=_cells(counts, shares) if fits else False,
        fmt="",
        annot_kws={"fontsize": 8},
        linewidths=0.6 if fits else 0,
        linecolor="white",
        xticklabels=names,
        yticklabels=names,
        cbar_kws={"label": "share of the actual class", "shrink": 0.75, "ticks": [0, 0.01, 0.05, 0.2, 0.5, 1]},
    )
    axes.tick_params(length=0, labelsize=9 if fits else 6)
    axes.set_xticklabels(axes.get_xticklabels(), rotation=45 if fits else 90, ha="right" if fits else "center")
    axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
    axes.set_xlabel("predicted", color=_INK)
    axes.set_ylabel("actual", color=_INK)
    right = int(np.trace(counts))
    axes.set_title(f"{right:,} of {len(labels):,} right ({right / len(labels):.2%})", loc="left", color=_INK, pad=12)
    return figure


def mistakes(probabilities: np.ndarray, labels: np.ndarray, read: Read, classes: Sequence[str]) -> Figure:
    """The images that are taken for something else with the highest probability, the worst first.

    `probabilities`: [n, classes]; `labels`: int [n]; images are enlarged pixel by pixel.
    """
    from matplotlib.figure import Figure

    predicted, sure = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    shown = wrong[np.argsort(-sure[wrong], kind="stable")][: _GRID[0] * _GRID[1]]
    columns = min(_GRID[1], max(4, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    width, height = 1.6 * columns, 2.0 * rows + 0.55  # inches: a heading, and each image with two lines above it
    figure = Figure(figsize=(width, height))
    places = {"left": 0.1 / width, "right": 1 - 0.1 / width, "top": 1 - 1.0 / height, "bottom": 0.1 / height}
    cells = figure.subplots(
        rows, columns, squeeze=False, gridspec_kw={**places, "wspace": 0.08, "hspace": 0.36}
    ).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, index, image in zip(cells, shown, read(shown), strict=False):
        axes.imshow(_enlarged(image), interpolation="antialiased")
        axes.set_title(
            f"{_short(classes[predicted[index]])} {sure[index]:.0%}", fontsize=9.5, color=_WRONG, pad=14, weight="bold"
        )
        actual = f"is {_short(classes[labels[index]])}"
        axes.text(0.5, 1.03, actual, transform=axes.transAxes, ha="center", va="bottom", fontsize=8.5, color=_PALE)
    which = f", the {len(shown)} surest of them" if len(shown) < len(wrong) else ""
    figure.suptitle(
        f"{len(wrong):,} of {len(labels):,} images are taken for something else{which}",
        x=0.1 / width,
        y=1 - 0.12 / height,
        ha="left",
        va="top",
        fontsize=12,
        color=_INK,
    )
    return figure


def _cells(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """What stands in each cell: the count and, where it is not nothing, its share."""
    texts = [f"{n:,}\n{share:.1%}" if n else "" for n, share in zip(counts.flat, shares.flat, strict=True)]
    return np.array(texts, dtype=object).reshape(counts.shape)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Whole pixels repeated, so that a small image stays sharp."""
    times = max(1, -(-_ENLARGED // max(image.shape[:2])))
    return image.repeat(times, 0).repeat(times, 1)


def _short(name: str) -> str:
    return _plain(name if len(name) <= 12 else f"{name[:11]}…")


def _plain(name: str) -> str:
    """matplotlib would take what stands between two dollars for a formula."""
    return name.replace("$", r"\$")

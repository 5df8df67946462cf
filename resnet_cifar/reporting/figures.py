"""Figures of an evaluation: pure functions of predictions, drawn without pyplot or a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from resnet_cifar.evaluation.calibration import BINS, Reliability
from resnet_cifar.reporting import style
from resnet_cifar.reporting.per_class import accuracy, percent, probability_text
from resnet_cifar.reporting.prediction_arrays import PredictionTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

READABLE = 30  # classes whose names and counts fit into a table
_DARK = 0.25  # share of a row from which the text is white
_GRID = (4, 8)  # rows and columns of the figure of mistakes
_ENLARGED = 160  # pixels of an enlarged image, at least
SHOWN = _GRID[0] * _GRID[1]


def confusion(counts: np.ndarray, classes: Sequence[str], cells: Literal["counts", "shares"]) -> Figure:
    """The confusion matrix `counts`, int [classes, classes]: rows are actual classes. Shaded by the share of the row.

    `cells`: the text of each cell. The shade follows the root of the share, so that rare confusions are visible. With
    more than 30 classes cells have no text and only every n-th class name is shown.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    count = len(classes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    fits = count <= READABLE
    side = 2.6 + 0.62 * count if fits else 11.0
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    axes = figure.subplots()
    every = 1 if fits else -(-count // 50)
    names = [_plain(name) for name in classes[::every]]
    mesh = axes.pcolormesh(
        shares,
        norm=PowerNorm(0.5, 0, 1),
        cmap="Blues",
        linewidths=0.6 if fits else 0,
        edgecolor="white",
        rasterized=not fits,  # vector graphics with a million squares are unusable
    )
    axes.set(aspect="equal", xlim=(0, count), ylim=(count, 0))
    axes.spines[:].set_visible(False)
    scale = figure.colorbar(mesh, ax=axes, label="share of the actual class", shrink=0.75)
    scale.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1])
    scale.outline.set_visible(False)
    scale.solids.set_rasterized(not fits)
    if fits:
        _annotate(axes, shares, _cells(counts, shares, cells))
    places = np.arange(0, count, every) + 0.5
    axes.set_xticks(places, names, rotation=45 if fits else 90, ha="right" if fits else "center")
    axes.set_yticks(places, names, rotation=0)
    axes.tick_params(length=0, labelsize=9 if fits else 6)
    axes.set_xlabel("predicted", color=style.INK)
    axes.set_ylabel("actual", color=style.INK)
    right, images = int(np.trace(counts)), int(counts.sum())
    axes.set_title(
        f"{right:,} of {images:,} correct ({accuracy(right / images, images)})", loc="left", color=style.INK, pad=12
    )
    return figure


def confident_mistakes(predictions: PredictionTable) -> np.ndarray:
    """The rows in the figure of mistakes, int64, most confident first."""
    wrong = np.flatnonzero(~predictions.correct)
    return wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:SHOWN]


def mistakes(predictions: PredictionTable, images: Mapping[int, np.ndarray], classes: Sequence[str]) -> Figure:
    """The most confident mistakes in descending order.

    `images`: row -> uint8 [height, width, 3], enlarged by whole pixels; rows without an image are left out.
    """
    from matplotlib.figure import Figure

    wrong = len(predictions) - int(predictions.correct.sum())
    shown = [row for row in confident_mistakes(predictions).tolist() if row in images]
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
    for axes, row in zip(cells, shown, strict=False):
        axes.imshow(_enlarged(images[row]), interpolation="antialiased")
        head = f"{_short(classes[predictions.predicted[row]])} {probability_text(predictions.confidence[row])}"
        axes.set_title(head, fontsize=9.5, color=style.WRONG, pad=14, weight="bold")
        actual = f"is {_short(classes[predictions.labels[row]])}"
        axes.text(
            0.5, 1.03, actual, transform=axes.transAxes, ha="center", va="bottom", fontsize=8.5, color=style.MUTED
        )
    which = f", the {len(shown)} most confident ones shown" if len(shown) < wrong else ""
    figure.suptitle(
        f"{wrong:,} of {len(predictions):,} images are misclassified{which}",
        x=0.1 / width,
        y=1 - 0.12 / height,
        ha="left",
        va="top",
        fontsize=12,
        color=style.INK,
    )
    return figure


def calibration(plain: Reliability, scaled: Reliability | None) -> Figure:
    """The reliability diagram (Niculescu-Mizil & Caruana 2005; Guo et al. 2017), with the share of images in each bin.

    `scaled`: the same with the fitted temperature, if any.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    style.style_axes(above, "accuracy", "")
    above.plot([0, 1], [0, 1], color=style.MUTED, linewidth=0.9, linestyle=(0, (1, 2)))
    _reliability(above, plain, style.SECOND, "uncalibrated")
    if scaled is not None:
        _reliability(above, scaled, style.FIRST, "with temperature")
    # Below the axes, where it covers no curve of an over- or underconfident model.
    figure.legend(frameon=False, fontsize=9, labelcolor=style.INK, loc="outside lower center", ncols=2)
    above.set(xlim=(0, 1.02), ylim=(0, 1.02))
    which = "" if scaled is None else "; bars: with temperature"
    style.style_axes(below, "", f"confidence{which}")
    last, color = (plain, style.SECOND) if scaled is None else (scaled, style.FIRST)
    below.bar(last.middle, last.images / last.images.sum(), width=0.9 / BINS, color=color, alpha=0.75)
    below.set_ylabel("share of images", fontsize=9, color=style.MUTED)
    for axis in (above.xaxis, above.yaxis, below.yaxis):
        axis.set_major_formatter(style.percent())
    return figure


def _reliability(axes: Axes, found: Reliability, color: str, name: str) -> None:
    words = f"{name}: error {percent(found.error, 2)}"
    axes.plot(found.confidence, found.accuracy, "o-", color=color, linewidth=1.6, markersize=4.5, label=words)


def _annotate(axes: Axes, shares: np.ndarray, texts: np.ndarray) -> None:
    """Writes the text of each cell, white on dark shades."""
    for (row, column), text in np.ndenumerate(texts):
        if text:
            color = "white" if shares[row, column] > _DARK else style.INK
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9, color=color)


def _cells(counts: np.ndarray, shares: np.ndarray, cells: str) -> np.ndarray:
    """The text of each cell; empty cells have none."""
    texts = [
        (f"{n:,}" if cells == "counts" else percent(share)) if n else ""
        for n, share in zip(counts.flat, shares.flat, strict=True)
    ]
    return np.array(texts, dtype=object).reshape(counts.shape)


def _enlarged(image: np.ndarray) -> np.ndarray:
    """Repeats whole pixels, so that a small image stays sharp."""
    times = max(1, -(-_ENLARGED // max(image.shape[:2])))
    return image.repeat(times, 0).repeat(times, 1)


def _short(name: str) -> str:
    return _plain(name if len(name) <= 12 else f"{name[:11]}…")


def _plain(name: str) -> str:
    """Escapes dollars, between which matplotlib would parse a formula."""
    return name.replace("$", r"\$")

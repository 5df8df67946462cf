"""Inline SVG charts in the CSS colors of the page, so that they follow its dark mode. Drawn without pyplot."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholders for the CSS variables: matplotlib writes these colors into the SVG unchanged.
_INK, _MUTED, _LINE, _ACCENT = "#010101", "#020202", "#030303", "#040404"
_RED, _GREEN, _BLUE = "#050505", "#060606", "#070707"
_VARIABLES = {
    _INK: "ink", _MUTED: "muted", _LINE: "line", _ACCENT: "accent", _RED: "red", _GREEN: "green", _BLUE: "blue"
}  # fmt: skip
_CHANNELS = {"red": _RED, "green": _GREEN, "blue": _BLUE}


def channel_histograms(histograms: np.ndarray) -> str:
    """Histogram of the pixel values of each channel; `histograms`: int64 [3, 256]."""
    figure, axes = _figure(5.6, 2.6)
    shares = histograms / histograms.sum(1, keepdims=True)
    for values, (name, color) in zip(shares, _CHANNELS.items(), strict=True):
        axes.fill_between(np.arange(256), 100 * values, step="mid", color=color, alpha=0.12, linewidth=0)
        axes.step(np.arange(256), 100 * values, where="mid", color=color, linewidth=1.3, label=name)
    axes.set_ylim(0, 100 * _top(shares))
    axes.set_xlim(-1, 256)
    axes.set_xticks([0, 64, 128, 192, 255])
    axes.set_xlabel("pixel value")
    axes.set_ylabel("% of the pixels")
    axes.legend(frameon=False, labelcolor=_INK, ncols=3, loc="upper center", borderaxespad=0.2)
    return _svg(figure, "channels")


def clipped_values(histograms: np.ndarray) -> list[str]:
    """The values whose bars `channel_histograms` clips, as text."""
    shares = histograms / histograms.sum(1, keepdims=True)
    found = zip(*np.nonzero(shares > _top(shares)), strict=True)
    return [f"{list(_CHANNELS)[channel]} {value} ({shares[channel, value]:.1%})" for channel, value in found]


def _top(shares: np.ndarray) -> float:
    """Upper limit of the axis: blank margins and overexposed pixels must not hide the rest."""
    return 1.3 * max(np.quantile(shares, 0.99), 1e-6)


def class_sizes(counts: Mapping[str, np.ndarray]) -> str:
    """Images per class in descending order, for too many classes for bars."""
    figure, axes = _figure(5.6, 2.8)
    for (name, values), color in zip(counts.items(), (_ACCENT, _GREEN, _RED), strict=False):
        ranked = np.sort(values)[::-1]
        axes.step(np.arange(1, len(ranked) + 1), ranked, where="mid", color=color, linewidth=1.5, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, max(map(len, counts.values())) + 1)
    axes.set_xlabel("classes, largest first")
    axes.set_ylabel("images")
    axes.legend(frameon=False, labelcolor=_INK)
    return _svg(figure, "classes")


def image_sizes(sizes: Counter[tuple[int, int]]) -> str:
    """Width against height: a dot per size, whose area grows with the number of images."""
    figure, axes = _figure(4.4, 3.8)
    places, counts = np.array(list(sizes)), np.array(list(sizes.values()))
    area = 14 + 220 * counts / counts.max()
    axes.scatter(places[:, 0], places[:, 1], s=area, color=_ACCENT, alpha=0.45, linewidth=0)
    if (places.max(0) > 8 * places.min(0)).any():
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, values in ((axes.xaxis, places[:, 0]), (axes.yaxis, places[:, 1])):
            ticks = _log_ticks(values.min(), values.max())
            axis.set_ticks(ticks, [f"{tick:,}" for tick in ticks])
            axis.set_ticks([], minor=True)  # whose labels would overprint
    else:
        axes.set_xlim(0, places[:, 0].max() * 1.1)
        axes.set_ylim(0, places[:, 1].max() * 1.1)
    axes.set_xlabel("width, pixels")
    axes.set_ylabel("height, pixels")
    return _svg(figure, "sizes")


def _log_ticks(low: int, high: int) -> list[int]:
    """A few numbers of pixels with room for their labels on a logarithmic axis from `low` to `high`."""
    for steps in ((1, 2, 5), (1,)):
        ticks = [step * 10**power for power in range(10) for step in steps if low <= step * 10**power <= high]
        if len(ticks) <= 5:
            break
    if len(ticks) < 2:  # the range lies between two of them
        ticks = [int(low), int(high)] if high > 1.3 * low else [int(high)]
    return ticks


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Inches; on the page they shrink with the screen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_LINE)
    axes.tick_params(color=_LINE, labelcolor=_MUTED, labelsize=9)
    axes.xaxis.label.set_color(_MUTED)
    axes.yaxis.label.set_color(_MUTED)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element with real text; `name` keeps ids on one page distinct."""
    import matplotlib

    stream = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    return re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)  # not needed in HTML

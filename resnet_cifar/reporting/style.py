"""Style of figures: fixed colors in files, CSS variables in pages, light and dark.

matplotlib is imported only when drawing, since the import takes a second.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_cifar.atomic_io import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

INK, MUTED, LINE = "#1c2128", "#5d6672", "#d9dde3"
FIRST, SECOND, WRONG = "#1f5fbf", "#c2570c", "#b3261e"
SERIES = (FIRST, SECOND, "#1a7f4b", "#8a3ffc", "#0b7285", "#a3195b")
# CSS variables of these colors: base.html defines the first ones, a template that uses more defines the others.
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", FIRST: "accent", SECOND: "second", WRONG: "wrong"}
_VARIABLES |= dict(zip(SERIES[2:], ("third", "fourth", "fifth", "sixth"), strict=True))
_TEXT = {"svg.fonttype": "none", "pdf.fonttype": 42, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}
_DPI = 150


def style_axes(axes: Axes, title: str, below: str) -> None:
    """A plain panel: title on the left, thin axes on the left and below."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=14, weight="bold")
    axes.set_xlabel(below, fontsize=9, color=MUTED)
    axes.tick_params(labelsize=9, colors=MUTED, length=3)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LINE)


def css_variable(color: str) -> str:
    """Name of the CSS variable of a color."""
    return f"--{_VARIABLES[color]}"


def percent() -> FuncFormatter:
    """Formats the shares of an axis as 85 %, with decimals if the range is small."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda share, _: f"{round(100 * share, 4):g}\u00a0%")


def thousands() -> FuncFormatter:
    """Formats the numbers of an axis as 12,000."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda number, _: f"{round(number, 4):,g}" if number < 1000 else f"{number:,.0f}")


def save(figure: Figure, folder: Path, name: str, kinds: Sequence[str] = ("png", "svg")) -> None:
    """Writes NAME.png and NAME.svg, or `kinds`, atomically; the text of the SVG stays text."""
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # left out, so that equal figures are equal files
    for kind in kinds:
        with atomic_write(folder / f"{name}.{kind}", flush=False) as aside, rc_context({**_TEXT, "svg.hashsalt": name}):
            figure.savefig(aside, format=kind, dpi=_DPI, facecolor="white", metadata=dates.get(kind, {}))
        figure.set_layout_engine("none")  # the layout is done and takes as long as drawing


def is_outdated(folder: Path, name: str, older_than: float) -> bool:
    """Whether NAME.png or NAME.svg is missing or older than the time `older_than`."""
    files = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    return any(not file.is_file() or file.stat().st_mtime < older_than for file in files)


def panel(title: str, draw: Callable[[Axes], None], size: tuple[float, float] = (4.7, 3.0)) -> str:
    """A figure of one panel of `size` in inches, which `draw` fills, as `inline` returns it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    return inline(figure, title)


def inline(figure: Figure, name: str) -> str:
    """The figure as an <svg> element without background, in the CSS variables of the page."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({**_TEXT, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z.0-9]+_\d+"', "", text)  # ids are unique within a page, which has several figures
    # matplotlib derives the ids of shapes from their content and the salt, so they do not clash between figures.
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    words = f'role="img" aria-label="{name}"'
    return re.sub(r'<svg (.*?)width="[^"]*"(.*?)height="[^"]*"', rf"<svg {words} \1\2", text, count=1, flags=re.DOTALL)

"""The live panel of a run in a notebook: progress bar, current metrics and curves, as HTML."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

from resnet_cifar.config.schema import METRIC_NAMES, Metric, selection_key
from resnet_cifar.reporting import html_page
from resnet_cifar.reporting.console import speed, time_left
from resnet_cifar.reporting.curves import TRAINING

_COLOURS = {"finished": "#1a7f4b", "failed": "#b3261e"}
_TRAINING, _VALIDATION, _INK = "#3b7ddd", "#e08a1e", "#7f8791"  # readable on white and black


def panel(
    run: str,
    state: str,
    steps: int,
    rows: Sequence[dict[str, Any]],
    warnings: Sequence[str],
    curves: str,
    select_by: Metric = "accuracy",
) -> str:
    """The HTML of a run of `steps` updates (0: not known yet) that is in `state` and has written `rows`.

    `curves`: the data: URL of an image, or empty. `select_by`: the validation metric that selects the best checkpoint.
    """
    done = rows[-1]["step"] if rows else 0
    return html_page.render(
        "live.html",
        run=run,
        state=state,
        percent=round(100 * done / steps, 1) if steps else 0,
        color=_COLOURS.get(state, _TRAINING),
        facts=list(_facts(steps, rows, select_by)),
        warnings=warnings,
        curves=curves,
    )


def _facts(steps: int, rows: Sequence[dict[str, Any]], select_by: Metric) -> Iterator[str]:
    if not rows:
        return
    last, trained = rows[-1], [row for row in rows if "train/loss" in row]  # not that of step 0
    steps = max(steps, last["step"])
    yield f"step {last['step']:,} of {steps:,}"
    if "train/loss" in last:
        yield f"epoch {last['epoch']:.2f} of {last['epoch'] * steps / last['step']:.2f}"
        yield from filter(None, (speed(last["images_per_second"]), time_left(steps, trained)))
        yield f"training loss {last['train/loss']:.3f}"
    if scores := [row for row in rows if "val/accuracy" in row]:
        best = max(scores, key=lambda row: selection_key(row, select_by))
        name, shown = METRIC_NAMES[select_by], f"val/{select_by}"
        yield f"validation {name} {scores[-1][shown]:.4f} (best {best[shown]:.4f})"


def curves(rows: Sequence[dict[str, Any]], mixed: bool = False) -> str:
    """A data: URL of loss and accuracy over epochs, training and validation, as SVG; empty without rows.

    `mixed`: whether training images are mixed.
    """
    if not rows:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(8.6, 2.7), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            trained, scored = ([row for row in rows if f"{part}/{name}" in row] for part in ("train", "val"))
            values = [row[f"train/{name}"] for row in trained]
            axes.plot(_epochs(trained), values, color=_TRAINING, label=TRAINING[mixed])
            marker = "o" if len(scored) <= 40 else ""
            axes.plot(
                _epochs(scored),
                [row[f"val/{name}"] for row in scored],
                color=_VALIDATION,
                marker=marker,
                markersize=3.5,
                label="validation",
            )
            axes.set_title(name, loc="left", color=_INK)
            axes.set_xlabel("epoch", color=_INK)
            axes.tick_params(colors=_INK, length=3)
            axes.grid(color=_INK, alpha=0.2, linewidth=0.6)
            for side, spine in axes.spines.items():
                spine.set_visible(side in ("left", "bottom"))
                spine.set_color(_INK)
            axes.legend(frameon=False, labelcolor=_INK, fontsize=8)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return html_page.data_url(stream.getvalue(), "svg+xml")


def _epochs(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["epoch"] for row in rows]

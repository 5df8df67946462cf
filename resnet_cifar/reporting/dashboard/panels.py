"""The charts of the dashboard as plain values, which the page's script draws and redraws."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable
from typing import Any

from resnet_cifar.config.schema import METRIC_NAMES
from resnet_cifar.reporting import style
from resnet_cifar.reporting.dashboard.run_feed import Line, RunFeed
from resnet_cifar.reporting.dashboard.tables import Named
from resnet_cifar.reporting.seed_stats import spread

DASHES = ("", "7 3", "2 3", "8 3 2 3")  # for more runs than colors
MAX_RUNS = len(style.SERIES) * len(DASHES)  # that can be told apart
TITLES = {
    "speed": {
        "images_per_second": "throughput, images/s",
        "mfu": "model FLOPs utilization",
        "memory_gib": "peak memory, GiB",
        "gpu_utilization": "GPU utilization",
        "wait_share": "share of time waiting for data",
    },
    "optimization": {
        "lr": "learning rate",
        "gradient_norm": "gradient norm before clipping",
        "skipped_updates": "updates that fp16 skipped",
    },
}
_SHARES = ("accuracy", "f1", "utilization", "share")  # in the names of fields from 0 to 1
_BAND_POINTS = 100  # evaluations at which an interval is computed
_MAX_SLICES = 6


def run_lines(number: int, name: str, run: RunFeed) -> dict[str, Any]:
    """The lines of run NUMBER, its color and dash pattern, its best evaluation and interruptions."""
    best = run.curves and run.curves.best
    return {
        "name": name,
        "color": color(number),
        "dash": DASHES[number // len(style.SERIES) % len(DASHES)],
        "lines": {field: [(step, *map(_rounded, point)) for step, *point in line] for field, line in run.lines.items()},
        "best": best and {"step": best["step"], "epoch": best["epoch"]},
        "stops": run.stops,
    }


def color(number: int) -> str:
    """The CSS variable of a series."""
    return style.css_variable(style.SERIES[number % len(style.SERIES)])


def line_panels(runs: Iterable[RunFeed]) -> list[dict[str, Any]]:
    """A panel for each field that any run has; training and validation share one."""
    fields = dict.fromkeys(field for run in runs for field in run.lines)
    metrics = [field.partition("/")[2] for field in fields if field.startswith(("train/", "val/"))]
    order = sorted(dict.fromkeys(metrics), key=lambda name: ({"loss": 0, "accuracy": 1}.get(name, 2), name))
    panels = [
        _panel("overview", METRIC_NAMES.get(name, name), [f"train/{name}", f"val/{name}"], zero=False) for name in order
    ]
    for section, titles in TITLES.items():
        panels += [_panel(section, title, [field]) for field, title in titles.items() if field in fields]
    known = {field for panel in panels for field in panel["fields"]}
    return panels + [_panel("other", field, [field], zero=False) for field in fields if field not in known]


def band_panels(groups: dict[str, Named]) -> list[dict[str, Any]]:
    """Validation accuracy of each group of seeds: the mean, and its 95 % interval, where two runs or more have one."""
    bands = [
        {
            "name": name,
            "color": color(number),
            "points": band([run.lines.get("val/accuracy", []) for run in each.values()]),
        }
        for number, (name, each) in enumerate(groups.items())
    ]
    bands = [each for each in bands if each["points"]]
    return [_panel("seeds", "validation accuracy, mean over seeds", [], zero=False, bands=bands)] if bands else []


def band(lines: list[Line]) -> list[tuple[float, ...]]:
    """(step, epoch, mean, low, high) at the steps that two lines or more have, at most 100 of them."""
    values: dict[tuple[float, float], list[float]] = {}
    for step, epoch, value in itertools.chain(*lines):
        values.setdefault((step, epoch), []).append(value)
    shared = sorted(item for item in values.items() if len(item[1]) > 1)
    found = ((place, spread(each)) for place, each in shared[:: max(1, -(-len(shared) // _BAND_POINTS))])
    return [(step, epoch, each["mean"], *each["interval"]) for (step, epoch), each in found]


def slice_panels(sweep: dict[str, Any], keys: dict[str, str]) -> list[dict[str, Any]]:
    """The best result of each run over each searched number. `sweep`: of `tables.sweep`; `keys`: of the runs' names."""
    scored = [row for row in sweep["rows"] if row["score"] is not None]
    panels = []
    for place, field in enumerate(sweep["fields"]):
        points = [(row["values"][place], row["score"], keys[row["name"]]) for row in scored]
        numbers = [x for x, _, _ in points if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(set(numbers)) > 1 and len(numbers) == len(points):
            is_log = min(numbers) > 0 and max(numbers) / statistics.median(numbers) > 10
            panels.append(_panel("sweep", f"best result over {field}", [], zero=False, points=points, log=is_log))
    return panels[:_MAX_SLICES]


def _panel(section: str, title: str, fields: list[str], zero: bool = True, **more: Any) -> dict[str, Any]:
    """`zero`: whether the vertical axis begins at 0."""
    is_share = any(word in field for field in [*fields, title] for word in _SHARES)
    return {"section": section, "title": title, "fields": fields, "zero": zero, "share": is_share, **more}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")

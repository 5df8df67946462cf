"""The tables of the dashboard: values for templates/_dashboard.html, from what the run directories hold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

from resnet_cifar.config.diff import differing_fields, recipe_key
from resnet_cifar.config.schema import METRIC_NAMES
from resnet_cifar.reporting import evaluation_summary, per_class, suspect_list
from resnet_cifar.reporting.console import duration
from resnet_cifar.reporting.dashboard.run_feed import RunFeed
from resnet_cifar.reporting.figures import READABLE
from resnet_cifar.reporting.per_class import accuracy, percent
from resnet_cifar.reporting.recipe_groups import is_trial
from resnet_cifar.reporting.seed_stats import metrics_of, spread

Named = dict[str, RunFeed]  # by the names that the page shows
_LATEST = 5  # rows whose median is shown
_IMAGES = 24  # of each gallery
_EVALUATED = 8  # runs whose predictions are shown
_IGNORED = ("track.", "seed", "refit_of", "checkpoint.")  # do not make a sweep


def overview(runs: Named) -> list[dict[str, Any]]:
    """A row per run: state, progress and results."""
    return [
        {
            "name": name,
            "state": "damaged" if run.error else run.listed.state,
            "why": run.error or run.listed.why,
            "step": "-" if run.listed.step is None else f"{run.listed.step:,}",
            "steps": f"{run.listed.steps:,}" if run.listed.steps else "?",
            "done": (run.listed.step or 0) / run.listed.steps if run.listed.steps else 0,
            "epoch": f"{run.curves.rows[-1]['epoch']:.2f}" if run.curves else "-",
            "left": duration(run.listed.seconds_left)
            if run.listed.state == "running" and run.listed.seconds_left
            else "",
            "best": _best_text(run),
            "test": run.test,
            "stops": [stop.text for stop in run.stops],
        }
        for name, run in runs.items()
    ]


def best_value(run: RunFeed) -> float | None:
    """The metric that selects the best checkpoint, of the best evaluation so far."""
    return run.curves.best[f"val/{run.curves.select_by}"] if run.curves and run.curves.best else None


def _best_text(run: RunFeed) -> str:
    value = best_value(run)
    if value is None:
        return "-"
    name = "" if run.curves.select_by == "accuracy" else f" {METRIC_NAMES[run.curves.select_by]}"
    return (f"{value:.4f}" if run.curves.select_by == "loss" else accuracy(value)) + name


def speed(runs: Named) -> dict[str, Any]:
    """The columns that any run has, and a row per run: medians of its latest rows, and what it cost."""
    columns = {
        "images/s": ("images_per_second", lambda value: f"{value:,.{0 if value >= 10 else 2}f}"),
        "MFU": ("mfu", percent),
        "memory, GiB": ("memory_gib", "{:.1f}".format),
        "data wait": ("wait_share", percent),
    }
    totals = {"GPU-hours": ("gpu_hours", "{:.2f}".format), "energy, kWh": ("energy_kwh", "{:.3f}".format)}
    rows = {name: {} for name, run in runs.items() if run.curves}
    for name, row in rows.items():
        latest = runs[name].curves.rows[-_LATEST:]
        for title, (field, text) in columns.items():
            if values := [each[field] for each in latest if field in each]:
                row[title] = text(statistics.median(values))
        for title, (field, text) in totals.items():
            if field in runs[name].result:
                row[title] = text(runs[name].result[field])
        if seconds := runs[name].status.get("seconds_to_first_step"):
            row["start"] = duration(seconds)
    names = [title for title in (*columns, *totals, "start") if any(title in row for row in rows.values())]
    return {"columns": names, "rows": rows}


def seed_groups(runs: Named) -> dict[str, Named]:
    """Runs whose recipes differ in the seed only, two or more, by the names of the groups.

    A seed counts once, with its first finished run. A trial of a search was chosen by its result and does not count.
    """
    groups: dict[str, dict[int, str]] = {}
    for name, run in runs.items():
        if run.recipe is not None and not is_trial(run.folder):
            names = groups.setdefault(recipe_key(run.recipe), {})
            first = names.setdefault(run.recipe.seed, name)
            if run.result and not runs[first].result:
                names[run.recipe.seed] = name
    found = {key: {name: runs[name] for name in names.values()} for key, names in groups.items() if len(names) > 1}
    return {_group_name(group, key): group for key, group in found.items()}


def _group_name(group: Named, key: str) -> str:
    """The directory that holds the runs, if it is one, and the fingerprint of their recipe."""
    homes = {run.folder.resolve().parent.name for run in group.values()}
    return f"{homes.pop()} ({key})" if len(homes) == 1 else key


def seeds(groups: dict[str, Named]) -> list[dict[str, Any]]:
    """A row per group and metric: mean, deviation and interval over the finished runs."""
    rows = []
    for group, runs in groups.items():
        names = metrics_of(next(iter(runs.values())).recipe)
        for metric in names:
            values = [run.result[metric] for run in runs.values() if metric in run.result]
            found = spread(values) if values else None
            interval = found and found["interval"]
            rows.append(
                {
                    "group": group,
                    "finished": f"{len(values)} of {len(runs)}",
                    "metric": metric,
                    "mean": f"{found['mean']:.4f}" if found else "-",
                    "deviation": f"{found['standard_deviation']:.4f}" if interval else "-",
                    "interval": f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "-",
                }
            )
    return rows


def sweep(runs: Named) -> dict[str, Any] | None:
    """The fields besides the seed in which the recipes differ, and a row per run, the best first. None without any."""
    read = {name: run for name, run in runs.items() if run.recipe is not None}
    recipes = [run.recipe for run in read.values()]
    fields = differing_fields(recipes, _IGNORED) if recipes else {}
    if not fields:
        return None
    sign = -1 if all(recipe.evaluate.select_by == "loss" for recipe in recipes) else 1
    best = {name: value for name, run in read.items() if (value := best_value(run)) is not None}
    scores = {name: value for name, value in best.items() if math.isfinite(value)}
    rows = [
        {
            "name": name,
            "values": [each[number] for each in fields.values()],
            "score": scores.get(name),
            "best": _best_text(run),
            "test": run.test or "-",
            "state": run.listed.state,
        }
        for number, (name, run) in enumerate(read.items())
    ]
    rows.sort(key=lambda row: (row["score"] is None, -sign * (row["score"] or 0)))
    return {"fields": list(fields), "rows": rows}


def cluster(runs: Named) -> list[dict[str, Any]]:
    """A row per attempt: where it ran, when, how far it came and how it ended."""
    return [row for name, run in runs.items() for row in _attempts(name, run)]


def _attempts(name: str, run: RunFeed) -> Iterator[dict[str, Any]]:
    hang = f", see {run.status['hang']}" if run.status.get("hang") else ""
    for number, (attempt, shown) in enumerate(run.attempts, start=1):
        is_last = number == len(run.attempts)  # of which environment.json tells
        yield {
            "name": name,
            **shown._asdict(),
            "end": shown.end + hang * is_last if "state" in attempt else run.listed.state,
            "host": attempt.get("host", "-"),
            "hardware": (run.facts.get("GPUs") or run.facts.get("processor", "-")) if is_last else "",
            "processes": run.facts.get("processes", "-") if is_last else "",
            "job": (run.listed.job or "-") if is_last else "",
        }


def predictions(runs: Named) -> list[dict[str, Any]]:
    """The evaluations of the latest 8 runs that have one: confusion, classes, example images, suspect labels."""
    found: dict[str, dict[str, Any]] = {}
    for name, run in sorted(runs.items(), key=lambda item: item[1].listed.active, reverse=True):
        if len(found) < _EVALUATED and (values := run.guarded(lambda run=run: _predictions(run))):
            found[name] = values
    return [{"name": name, **found[name]} for name in runs if name in found]


def _predictions(run: RunFeed) -> dict[str, Any] | None:
    files = {file.stem.removeprefix("eval-"): file for file in run.folder.glob("eval-*.json")}
    newest = max(files, key=lambda name: files[name].stat().st_mtime, default=None)
    name = "test" if run.result and "test" in files else newest
    written = (f"predictions-{name}.parquet", f"eval-{name}.json", f"report/pictures-{name}.npz")
    return name and run.cached(written, lambda file: _evaluation(run, name))


def _evaluation(run: RunFeed, name: str) -> dict[str, Any] | None:
    found = evaluation_summary.read_evaluation(run.folder, name)
    if found is None:
        return None
    fits, by_class = len(found.classes) <= READABLE, per_class.by_class(found.metrics)
    return {
        "evaluation": f"{found.metrics['split']} split, {found.metrics['checkpoint']}",
        "summary": per_class.summary_sentence(found.metrics),
        "classes": found.classes,
        "cells": per_class.cells(found.counts) if fits else None,
        "pairs": per_class.confused_pairs(found.counts)[:8],
        "by_class": by_class if fits else per_class.worst(by_class),
        "mistakes": evaluation_summary.confident_mistakes(found)[:_IMAGES],
        "suspects": suspect_list.most_suspect(found)[:_IMAGES] if found.predictions else [],
        "suspect_count": len(found.predictions.suspects.rows) if found.predictions else 0,
    }

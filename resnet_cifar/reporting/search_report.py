"""The page of a hyperparameter search: its best recipe and what it cost, history, importance, all trials."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.schema import METRIC_NAMES
from resnet_cifar.reporting import html_page, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARGIN = 0.04  # of an axis, beyond its range


def write(summary: dict[str, Any], home: Path) -> None:
    """Writes index.html into the search's directory `home`; `summary`: the content of study.json."""
    html_page.write_page(home / "index.html", render(summary, home))


def render(summary: dict[str, Any], home: Path) -> str:
    """The page as text; costs are read from the run directories of the trials."""
    costs = [_cost(home / f"trial-{number:03d}") for number in range(len(summary["trials"]))]
    return html_page.render(
        "search.html",
        title=Path(summary["recipe"]).stem,
        lead=f"{METRIC_NAMES[_metric(summary)].capitalize()} on the validation images decides; the test images have no "
        "influence.",
        tiles=_tiles(summary, costs),
        ranges=list(summary["ranges"].items()),
        best=None if summary["best"] is None else _row(summary, summary["best"], costs),
        finished=len(_finished(summary)),
        recipe=shlex.quote(str(home / "best.yaml")),
        metric=METRIC_NAMES[_metric(summary)],
        unit=_unit(costs),
        overview=_overview(summary),
        slices=_slices(summary),
        rows=[_row(summary, number, costs) for number in summary["ranking"]],
        settings=f"At most {summary['parallel']} trial{'s' * (summary['parallel'] > 1)} at once (--parallel). "
        + (
            f"A trial ended early when its best lay below the median of at least {summary['prune']} finished ones "
            f"(--prune {summary['prune']})."
            if summary["prune"]
            else "No trial was ended early (--prune)."
        ),
    )


def _metric(summary: dict[str, Any]) -> str:
    return summary["metric"].removeprefix("val/")


def _finished(summary: dict[str, Any]) -> list[int]:
    """The numbers of the finished trials, the first one first."""
    return [number for number, trial in enumerate(summary["trials"]) if trial["state"] == "finished"]


def _cost(run: Path) -> tuple[float, bool]:
    """Seconds of all attempts at a trial, times their devices; and whether these were GPUs."""
    attempts = (read_json(run / "attempts.json") or {}).get("attempts", [])
    last, world = (read_json(run / name) or {} for name in ("status.json", "environment.json"))
    seconds = sum(
        (attempt.get("ended", last.get("time", attempt["began"])) - attempt["began"])
        * attempt.get("gpus", world.get("world_size", 1))
        for attempt in attempts
    )
    return seconds, any("gpus" in attempt for attempt in attempts)


def _unit(costs: list[tuple[float, bool]]) -> str:
    return "GPU-hours" if any(on_gpus for _, on_gpus in costs) else "process-hours"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2g}" if seconds < 36_000 else f"{seconds / 3600:,.0f}"


def _tiles(summary: dict[str, Any], costs: list[tuple[float, bool]]) -> list[tuple[str, str, str]]:
    """(name, value, remark)."""
    trials, best = summary["trials"], summary["best"]
    states = Counter(trial["state"] for trial in trials)
    found = [("trials", f"{len(trials)}", ", ".join(f"{count} {state}" for state, count in states.most_common()))]
    if best is not None:
        name = f"best {METRIC_NAMES[_metric(summary)]}"
        found.insert(0, (name, f"{trials[best][summary['metric']]:.4f}", f"validation, trial {best}"))
    whole = sum(seconds for seconds, _ in costs)
    found.append(("cost of the search", _hours(whole), f"{_unit(costs)}, interrupted attempts included"))
    if best is not None:
        found.append(("cost of the best trial", _hours(costs[best][0]), _unit(costs)))
    return found


def _word(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _row(summary: dict[str, Any], number: int, costs: list[tuple[float, bool]]) -> dict[str, Any]:
    """A trial, as text."""
    trial = summary["trials"][number]
    value = trial[summary["metric"]]
    return {
        "number": number,
        "state": trial["state"],
        "value": "" if value is None else f"{value:.4f}",
        "values": [_word(trial["values"][path]) for path in summary["ranges"]],
        "hours": _hours(costs[number][0]) if costs[number][0] else "",
        "why": trial["why"],
    }


def _overview(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, svg) of history, importance and parallel coordinates; empty before two trials have finished."""
    if len(_finished(summary)) < 2:
        return []
    found = [("history", style.panel("history", lambda axes: _history(axes, summary)))]
    if summary["importance"]:
        found.append(("importance", style.panel("importance", lambda axes: _importance(axes, summary["importance"]))))
    size = (max(9.7, 1.3 * (len(summary["ranges"]) + 1)), 3.4)
    found.append(("coordinates", style.panel("parallel coordinates", lambda axes: _coordinates(axes, summary), size)))
    return found


def _slices(summary: dict[str, Any]) -> list[str]:
    if len(_finished(summary)) < 2:
        return []
    return [style.panel(path, lambda axes, path=path: _slice(axes, summary, path)) for path in summary["ranges"]]


def _history(axes: Axes, summary: dict[str, Any]) -> None:
    style.style_axes(axes, f"validation {METRIC_NAMES[_metric(summary)]}", "trial")
    numbers = _finished(summary)
    values = [summary["trials"][number][summary["metric"]] for number in numbers]
    better = min if _metric(summary) == "loss" else max
    bests = [better(values[: count + 1]) for count in range(len(values))]
    axes.step(
        [*numbers, len(summary["trials"]) - 1], [*bests, bests[-1]], where="post", color=style.SECOND, linewidth=1.4
    )
    axes.plot(numbers, values, "o", color=style.FIRST, markersize=5)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _importance(axes: Axes, importance: dict[str, float]) -> None:
    style.style_axes(axes, "importance for the best trials", "")
    names = list(importance)[::-1]
    axes.barh(names, [importance[name] for name in names], color=style.FIRST, height=0.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=style.LINE, linewidth=0.7)
    axes.set(xlim=(0, 1), ylim=(-0.6, max(len(names), 4) - 0.4))  # bars of few fields are not thick
    axes.xaxis.set_major_formatter(style.percent())


def _ends(searched: str) -> tuple[float, float]:
    """The ends of `0.001 to 0.1, on a log scale`."""
    low, high = searched.partition(",")[0].split(" to ")
    return float(low), float(high)


def _places(summary: dict[str, Any], path: str) -> tuple[list[float], list[tuple[float, str]]]:
    """Where each trial's value lies on an axis from 0 to 1, and the labels of that axis."""
    import numpy as np

    values = [trial["values"][path] for trial in summary["trials"]]
    if isinstance(values[0], str):
        words = summary["ranges"][path].removeprefix("one of ").split("; ")
        places = {word: (index + 0.5) / len(words) for index, word in enumerate(words)}
        return [places[value] for value in values], [(place, word) for word, place in places.items()]
    scale = np.log if summary["ranges"][path].endswith("on a log scale") else np.asarray
    low, high = _ends(summary["ranges"][path])
    spread = scale(high) - scale(low)
    return [float((scale(value) - scale(low)) / spread) for value in values], [(0.0, _word(low)), (1.0, _word(high))]


def _coordinates(axes: Axes, summary: dict[str, Any]) -> None:
    """A line per trial through its values; of finished ones, to the result, darker the better it is."""
    import numpy as np

    trials, metric, paths = summary["trials"], summary["metric"], list(summary["ranges"])
    columns = [_places(summary, path) for path in paths]
    ranking = [number for number in summary["ranking"] if trials[number]["state"] == "finished"]
    results = [trials[number][metric] for number in ranking]
    low, high = min(results), max(results)
    last = [(trial[metric] - low) / (high - low or 1) if trial[metric] is not None else None for trial in trials]
    columns.append((last, [(0.0, f"{low:.4f}"), (1.0, f"{high:.4f}")]))
    for number in [number for number in range(len(trials)) if number not in ranking] + ranking[::-1]:
        line = [places[number] for places, _ in columns if places[number] is not None]
        look = {"color": style.MUTED, "linewidth": 0.8, "alpha": 0.45, "linestyle": (0, (2, 2))}
        if number in ranking:
            share = 1 - ranking.index(number) / len(ranking)
            look = {"color": style.FIRST, "linewidth": 1.2, "alpha": 0.15 + 0.75 * share**2}
        if number == summary["best"]:
            look = {"color": style.SECOND, "linewidth": 2.4}
        axes.plot(np.arange(len(line)), line, **look)
    for place, (name, (_, labels)) in enumerate(
        zip([*paths, f"validation {METRIC_NAMES[_metric(summary)]}"], columns, strict=True)
    ):
        axes.plot([place, place], [0, 1], color=style.LINE, linewidth=1, zorder=0)
        axes.text(place, -0.16, name, ha="center", va="top", fontsize=9, weight="bold", color=style.INK)
        for height, text in labels:
            axes.text(place + 0.02, height + 0.01, text, ha="left", va="bottom", fontsize=8.5, color=style.MUTED)
    axes.set(xlim=(-0.3, len(columns) - 0.55), ylim=(-0.3, 1.12))
    axes.set_axis_off()


def _slice(axes: Axes, summary: dict[str, Any], path: str) -> None:
    from matplotlib.ticker import NullFormatter

    style.style_axes(axes, path, "")
    trials, metric = summary["trials"], summary["metric"]
    numbers = _finished(summary)
    is_choice = isinstance(trials[0]["values"][path], str)
    places, labels = _places(summary, path)
    for number in numbers:
        is_best = number == summary["best"]
        axes.plot(
            [places[number] if is_choice else trials[number]["values"][path]],
            [trials[number][metric]],
            "o",
            color=style.SECOND if is_best else style.FIRST,
            markersize=7 if is_best else 5,
            alpha=1 if is_best else 0.7,
            zorder=3 if is_best else 2,
        )
    if is_choice:
        axes.set_xticks([place for place, _ in labels], [word for _, word in labels])
        axes.set_xlim(0, 1)
        return
    is_log = summary["ranges"][path].endswith("on a log scale")
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = _ends(summary["ranges"][path])
    beyond = (high / low) ** _MARGIN if is_log else _MARGIN * (high - low)
    axes.set_xlim((low / beyond, high * beyond) if is_log else (low - beyond, high + beyond))

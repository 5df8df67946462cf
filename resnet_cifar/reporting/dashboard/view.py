"""The dashboard of several runs: a page, and the parts of it that have changed since."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_cifar.config.errors import UserError
from resnet_cifar.reporting import html_page
from resnet_cifar.reporting.comparison_report import unique_names
from resnet_cifar.reporting.dashboard import panels, tables
from resnet_cifar.reporting.dashboard.run_feed import RunFeed
from resnet_cifar.reporting.run_listing import ListedRun, list_runs

SECTIONS = {
    "overview": "Overview",
    "speed": "Speed",
    "optimization": "Optimization",
    "other": "Other metrics",
    "predictions": "Predictions",
    "seeds": "Seeds",
    "sweep": "Sweep",
    "cluster": "Cluster",
}
_GOING_ON = ("starting", "running")
_BETWEEN_RUNS = 60.0  # seconds in which seeds and searches start their next run


@dataclass(frozen=True)
class View:
    """`parts`: JSON values by name: `html:SECTION`, `run:KEY` for the lines of each drawn run, and `layout`.

    `is_live`: whether any run goes on, or may be about to start.
    """

    parts: dict[str, Any]
    is_live: bool

    def changes(self, sent: dict[str, Any]) -> dict[str, Any]:
        """The parts that differ from those `sent`; None for one that is gone."""
        changed = {name: part for name, part in self.parts.items() if sent.get(name) != part}
        return changed | {name: None for name in sent if name not in self.parts}


class Dashboard:
    """Reads the runs at and below `roots` each time it is looked at. `link`: the address of a run's report."""

    def __init__(self, roots: Sequence[Path], link: Callable[[str, Path], str]) -> None:
        self.roots, self._link = roots, link
        self.feeds: dict[str, RunFeed] = {}
        self._numbers: dict[str, int] = {}  # of the drawn runs, for colors and dash patterns: a run keeps its own
        self._view: View | None = None

    def look(self) -> View:
        """The runs as they are now. Raises UserError if there are none."""
        listed = {str(Path(run.run).resolve()): run for run in list_runs(self.roots)}
        if not listed:
            raise UserError(
                f"no run is at or below {', '.join(map(str, self.roots))}: name a run directory, or one that holds runs"
            )
        is_changed = self.feeds.keys() != listed.keys()
        self.feeds = {key: self.feeds.get(key) or RunFeed(Path(run.run), run) for key, run in sorted(listed.items())}
        changed = [key for key, feed in self.feeds.items() if feed.read(listed[key])]
        is_live = self._is_live(list(listed.values()))
        if self._view is None or is_changed or changed or is_live != self._view.is_live:
            self._view = View(self._parts(), is_live)
        return self._view

    def page(self, view: View, *, events: str = "", reload: float = 0) -> str:
        """The whole page. `events`: the address that sends changes; `reload`: seconds after which it loads again."""
        return html_page.render(
            "dashboard.html",
            sections=SECTIONS,
            html={name: view.parts[f"html:{name}"] for name in SECTIONS},
            state={"parts": view.parts, "events": events, "reload": reload if view.is_live else 0},
            made=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    def _is_live(self, runs: Sequence[ListedRun]) -> bool:
        if any(run.state in _GOING_ON for run in runs):
            return True
        homes = [root for root in map(Path.resolve, self.roots) if str(root) not in self.feeds]
        below = [run.active for run in runs if any(home in Path(run.run).resolve().parents for home in homes)]
        return time.time() - max(below, default=0) < _BETWEEN_RUNS

    def _parts(self) -> dict[str, Any]:
        """The drawn runs are the latest active ones, in the order of their names."""
        active = sorted(self.feeds, key=lambda key: self.feeds[key].listed.active, reverse=True)
        names = dict(zip(self.feeds, unique_names([feed.folder for feed in self.feeds.values()]), strict=True))
        keys = [key for key in self.feeds if key in active[: panels.MAX_RUNS]]
        self._numbers = {key: number for key, number in self._numbers.items() if key in keys}
        free = iter(sorted({*range(panels.MAX_RUNS)} - {*self._numbers.values()}))
        self._numbers |= {key: next(free) for key in keys if key not in self._numbers}
        every = {names[key]: feed for key, feed in self.feeds.items()}
        drawn = {names[key]: self.feeds[key] for key in keys}
        by_name = {name: key for key, name in names.items()}
        predictions = tables.predictions(drawn)
        usable = {name: feed for name, feed in every.items() if not feed.error}
        groups, sweep = tables.seed_groups(usable), tables.sweep(usable)
        values = {
            "overview": {"rows": tables.overview(every), "drawn": len(drawn)},
            "speed": tables.speed({name: feed for name, feed in drawn.items() if name in usable}),
            "optimization": None,
            "other": None,
            "predictions": predictions,
            "seeds": tables.seeds(groups),
            "sweep": sweep,
            "cluster": tables.cluster({name: feed for name, feed in drawn.items() if name in usable}),
        }
        links = {
            name: self._link(by_name[name], feed.folder)
            for name, feed in every.items()
            if (feed.folder / "report" / "index.html").is_file()
        }
        colors = {name: panels.color(self._numbers[by_name[name]]) for name in drawn}
        found = {
            f"html:{name}": html_page.render("_dashboard.html", section=name, values=each, links=links, colors=colors)
            for name, each in values.items()
        }
        charts = [
            *panels.line_panels(drawn.values()),
            *panels.band_panels(groups),
            *(panels.slice_panels(sweep, by_name) if sweep else ()),
        ]
        lines = {f"run:{key}": panels.run_lines(self._numbers[key], names[key], self.feeds[key]) for key in keys}
        return {**found, **lines, "layout": {"runs": keys, "panels": charts}}


def relative_link(file: Path) -> Callable[[str, Path], str]:
    """The links of a page that is written to `file`."""
    return lambda key, run: os.path.relpath(run / "report" / "index.html", file.resolve().parent)

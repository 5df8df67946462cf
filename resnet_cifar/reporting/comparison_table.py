"""A table of runs: their results and the fields in which their recipes differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.diff import differing_fields
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.reporting.console import listing
from resnet_cifar.reporting.seed_stats import metrics_of

_METRICS = ("val/accuracy", "test/accuracy", "test/loss")
MAX_COLUMNS = 8  # of a table on a terminal


class Run(NamedTuple):
    """The content of a run directory; `status` and `result` are empty if missing."""

    folder: Path
    recipe: Recipe
    status: dict[str, Any]
    result: dict[str, Any]


def read_runs(folders: list[Path]) -> list[Run]:
    """Reads run directories. Raises UserError if a file is damaged."""
    recipes = [read_recipe(str(folder / "recipe.yaml")) for folder in folders]
    states = [[read_json(folder / name) or {} for name in ("status.json", "result.json")] for folder in folders]
    return [Run(folder, recipe, *state) for folder, recipe, state in zip(folders, recipes, states, strict=True)]


def unique_names(folders: list[Path]) -> list[str]:
    """Names of the runs: their directory names, with as many parents as it takes to make them unique."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(map(str, folders), start=1)]


def compare(runs: Sequence[Run], spread: Iterable[str] = ()) -> None:
    """Prints a table with a row per run: differing recipe fields, state, steps and metrics; `spread` below it."""
    fields = differing_fields([run.recipe for run in runs])
    metrics = dict.fromkeys((*_METRICS, *(name for run in runs for name in metrics_of(run.recipe))))
    console = listing()
    shown = list(fields)[: max(1, MAX_COLUMNS - 3 - len(metrics))] if console.is_terminal else list(fields)
    table = Table("run", *shown, "state", "step", *metrics, box=None, pad_edge=False, header_style="bold")
    for number, (folder, _, status, result) in enumerate(runs):
        steps = f"{status.get('step', 0)}/{status.get('steps', '?')}"
        reached = [f"{result[name]:.4f}" if name in result else "-" for name in metrics]
        values = [str(fields[path][number]) for path in shown]
        table.add_row(*map(escape, (str(folder), *values, status.get("state", "claimed"), steps, *reached)))
    console.print(table)
    print_hidden(console, list(fields)[len(shown) :])
    for line in spread:
        console.print(line, markup=False)
    for run in runs:
        if why := run.status.get("why"):
            console.print(f"{run.folder} {run.status['state']}: {why}", soft_wrap=True, markup=False)


def print_hidden(console: Console, fields: Sequence[str]) -> None:
    """Names the differing fields for which a table on a terminal has no room."""
    if fields:
        console.print(f"Also differing, see the page: {', '.join(fields)}.", soft_wrap=True)

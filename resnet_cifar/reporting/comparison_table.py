"""A table of runs: their results and the fields in which their recipes differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.diff import differing_fields
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.reporting.console import listing
from resnet_cifar.reporting.seed_stats import metrics_of, spread, summary_line

_METRICS = ("val/accuracy", "test/accuracy", "test/loss")


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


def compare(folders: list[Path]) -> None:
    """Prints a table with a row per run: differing recipe fields, state, steps and metrics."""
    runs = read_runs(folders)
    fields = differing_fields([run.recipe for run in runs])
    metrics = dict.fromkeys((*_METRICS, *(name for run in runs for name in metrics_of(run.recipe))))
    table = Table("run", *fields, "state", "step", *metrics, box=None, pad_edge=False, header_style="bold")
    for number, (folder, _, status, result) in enumerate(runs):
        steps = f"{status.get('step', 0)}/{status.get('steps', '?')}"
        reached = [f"{result[name]:.4f}" if name in result else "-" for name in metrics]
        values = [str(each[number]) for each in fields.values()]
        table.add_row(*map(escape, (str(folder), *values, status.get("state", "claimed"), steps, *reached)))
    console = listing()
    console.print(table)
    for line in seed_summary(runs) if list(fields) == ["seed"] else ():
        console.print(line, markup=False)
    for run in runs:
        if why := run.status.get("why"):
            console.print(f"{run.folder} {run.status['state']}: {why}", soft_wrap=True, markup=False)


def seed_summary(runs: Sequence[Run]) -> Iterator[str]:
    """Mean and spread of the finished runs, which differ in their seed only."""
    for name in metrics_of(runs[0].recipe):
        if values := [run.result[name] for run in runs if name in run.result]:
            yield summary_line(name, spread(values))

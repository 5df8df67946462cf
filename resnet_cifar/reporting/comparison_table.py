"""Run folders side by side: what they reached, and where their recipes differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from resnet_cifar.atomic_io import read_json
from resnet_cifar.config.diff import flatten
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.reporting.console import listing
from resnet_cifar.reporting.seed_stats import sentence, spread

_SCORES = ("val/accuracy", "test/accuracy", "test/loss")


class Run(NamedTuple):
    """A run folder as far as it is: `values` are its recipe's fields, by path."""

    folder: Path
    recipe: Recipe
    values: dict[str, Any]
    status: dict[str, Any]
    result: dict[str, Any]


def read(folders: list[Path]) -> list[Run]:
    """What is compared. Raises UserError where a file is damaged."""
    recipes = [read_recipe(str(folder / "recipe.yaml")) for folder in folders]
    words = [tuple(read_json(folder / name) or {} for name in ("status.json", "result.json")) for folder in folders]
    return [Run(f, recipe, flatten(recipe), *each) for f, recipe, each in zip(folders, recipes, words, strict=True)]


def differing(runs: list[Run]) -> list[str]:
    """The fields in which the recipes differ, in their order."""
    paths = dict.fromkeys(path for run in runs for path in run.values)  # a set that keeps the order
    return [path for path in paths if len({repr(run.values.get(path)) for run in runs}) > 1]


def compare(folders: list[Path]) -> None:
    """Prints a table with a row for each run: state, steps, scores, and the fields in which the recipes differ."""
    runs = read(folders)
    paths = differing(runs)
    table = Table("run", *paths, "state", "step", *_SCORES, box=None, pad_edge=False, header_style="bold")
    for folder, _, values, status, result in runs:
        steps = f"{status.get('step', 0)}/{status.get('steps', '?')}"
        scores = [_number(result.get(name)) for name in _SCORES]
        words = (str(folder), *(word(values, path) for path in paths), status.get("state", "claimed"), steps, *scores)
        table.add_row(*map(escape, words))
    console = listing()
    console.print(table)
    for line in spread_of([run.result for run in runs]) if paths == ["seed"] else ():
        console.print(line, markup=False)
    for run in runs:
        if why := run.status.get("why"):
            console.print(f"{run.folder} {run.status['state']}: {why}", soft_wrap=True, markup=False)


def spread_of(results: list[dict[str, Any]]) -> Iterator[str]:
    """What finished runs that differ in their seed alone have reached together."""
    for name in _SCORES[:2]:
        if values := [result[name] for result in results if name in result]:
            yield sentence(name, spread(values))


def word(values: dict[str, Any], path: str) -> str:
    """A field of a recipe, as a table shows it."""
    return str(values[path]) if path in values else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

"""Run folders side by side: what they reached, and where their recipes differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from resnet_cifar import cli
from resnet_cifar.recipe import flat
from resnet_cifar.reporting.console import listing
from resnet_cifar.reporting.spread import sentence, spread
from resnet_cifar.run_folder import read_json

_SCORES = ("val/accuracy", "test/accuracy", "test/loss")


def compare(folders: list[Path]) -> None:
    """Prints a table with a row for each run: state, steps, scores, and the fields in which the recipes differ."""
    recipes = [flat(cli.read_recipe(str(folder / "recipe.yaml"))) for folder in folders]
    # dict.fromkeys is a set that keeps the order of the fields
    paths = [
        p for p in dict.fromkeys(p for recipe in recipes for p in recipe) if len({repr(r.get(p)) for r in recipes}) > 1
    ]
    table = Table("run", *paths, "state", "step", *_SCORES, box=None, pad_edge=False, header_style="bold")
    statuses = [read_json(folder / "status.json") or {} for folder in folders]
    results = [read_json(folder / "result.json") or {} for folder in folders]
    for folder, recipe, status, result in zip(folders, recipes, statuses, results, strict=True):
        steps = f"{status.get('step', 0)}/{status.get('steps', '?')}"
        scores = [_number(result.get(name)) for name in _SCORES]
        words = (str(folder), *(_word(recipe, path) for path in paths), status.get("state", "claimed"), steps, *scores)
        table.add_row(*map(escape, words))
    console = listing()
    console.print(table)
    for line in _spread(results) if paths == ["seed"] else ():
        console.print(line, markup=False)
    for folder, status in zip(folders, statuses, strict=True):
        if why := status.get("why"):
            console.print(f"{folder} {status['state']}: {why}", soft_wrap=True, markup=False)


def _spread(results: list[dict[str, Any]]) -> Iterator[str]:
    """What finished runs that differ in their seed alone have reached together."""
    for name in _SCORES[:2]:
        if values := [result[name] for result in results if name in result]:
            yield sentence(name, spread(values))


def _word(recipe: dict[str, Any], path: str) -> str:
    return str(recipe[path]) if path in recipe else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

"""Compares recipes over seeds: means with intervals, and each recipe against the first one with a t test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.table import Table

from resnet_cifar.config.diff import varying_fields
from resnet_cifar.evaluation import significance
from resnet_cifar.evaluation.significance import TTest
from resnet_cifar.reporting.comparison_table import MAX_COLUMNS, Run, print_hidden
from resnet_cifar.reporting.console import listing
from resnet_cifar.reporting.recipe_groups import SPLITS, RecipeRuns, differ_by_seed, group_by_recipe, image_sentence
from resnet_cifar.reporting.seed_stats import metrics_of, spread, summary_line


class Row(NamedTuple):
    """A result of a recipe: see `spread` and `t_test`, the test of its difference from the first recipe's.

    `p`: adjusted by Holm's method for the number of recipes that are tested against the first.
    """

    recipe: RecipeRuns
    metric: str
    spread: dict[str, Any]
    test: TTest | None
    p: float | None


class Sheet(NamedTuple):
    """A table as text: `rows` have a cell for each of `header`."""

    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Comparison:
    """Recipes in the order in which their runs were given, the first being the one that others are tested against.

    `fields`: field path -> its value in each recipe, for those that vary.
    """

    recipes: list[RecipeRuns]
    fields: dict[str, list[Any]]
    metrics: list[str]
    rows: list[Row]

    @property
    def has_seeds(self) -> bool:
        """Whether there are several recipes, and of one of them more than one finished run."""
        return len(self.recipes) > 1 and any(row.spread["runs"] > 1 for row in self.rows)

    def place(self, run: Run) -> int:
        """The position of the run's recipe, also of a run that does not count."""
        return next(n for n, each in enumerate(self.recipes) if run in each.runs or run.folder in each.left_out)

    def recipe_sheet(self, fields: int | None = None) -> Sheet:
        """A row per recipe: its name, the varying fields (only the first ones, if a number is given), and its means."""
        shown = list(self.fields)[:fields]
        header = ["recipe", *shown, "seeds", *self.metrics]
        found = {(row.recipe.name, row.metric): row.spread for row in self.rows}
        rows = []
        for number, each in enumerate(self.recipes):
            spreads = [found.get((each.name, metric)) for metric in self.metrics]
            seeds = max((one["runs"] for one in spreads if one), default=0)
            values = [str(self.fields[path][number]) for path in shown]
            rows.append([each.name, *values, str(seeds), *map(_mean_text, spreads)])
        return Sheet(header, rows)

    def test_sheet(self) -> Sheet:
        """A row per recipe and metric with at least two seeds: the mean's interval, and the test against the first."""
        corrected = ", adjusted" * (len(self.recipes) > 2)
        header = ["metric", "recipe", "95 % interval", "difference", "its 95 % interval", f"p{corrected}", "test"]
        rows = []
        for row in self.rows:
            if row.spread["interval"]:
                tested = _test_texts(row) if row.test else ["-"] * 4
                rows.append([row.metric, row.recipe.name, interval_text(row.spread["interval"]), *tested])
        return Sheet(header, rows)

    def notes(self) -> list[str]:
        """What to know when reading the tables, in sentences."""
        first = self.recipes[0]
        found = ["Means over seeds ± standard deviation; below them the interval of the mean."] * self.has_seeds
        if any(row.test for row in self.rows):
            found.append(
                f"Differences from {first.name} are tested by a paired t test over the seeds that both recipes have, "
                "if these are three or more and each is evaluated on the same images in both, otherwise by Welch's "
                "test."
            )
            if len(self.recipes) > 2:
                found.append("p is adjusted for the number of recipes by Holm's method; the intervals are not.")
        found += [sentence for each in self.recipes if (sentence := image_sentence(each.runs, f"{each.name}: the"))]
        if others := [each.name for each in self.recipes[1:] if differ_by_seed(first, each)]:
            found.append(
                f"{first.name} and {', '.join(others)} are tested on different images under the same seed: the "
                "difference includes that of the images."
            )
        finished = max((row.spread["runs"] for row in self.rows if row.recipe is first), default=0)
        if self.has_seeds and finished < 2:
            number = "only one" if finished else "no"
            found.append(f"Nothing is tested against {first.name}, which has {number} finished run.")
        return found + self._left_out()

    def seed_lines(self) -> list[str]:
        """Mean and spread over the seeds of the only recipe; none if there are several, or one seed."""
        if len(self.recipes) > 1 or len(self.recipes[0].runs) < 2:
            return []
        lines = [summary_line(row.metric, row.spread) for row in self.rows]
        return lines + self._left_out() if lines else []

    def _left_out(self) -> list[str]:
        left_out = [f"{run} ({why})" for each in self.recipes for run, why in each.left_out.items()]
        return [f"Not counted: {', '.join(left_out)}."] if left_out else []


def compare_recipes(runs: Sequence[Run]) -> Comparison:
    """Groups runs by recipe and tests each recipe against the first one."""
    recipes = group_by_recipe(runs)
    metrics = list(dict.fromkeys(metric for each in recipes for metric in metrics_of(each.recipe)))
    rows = [row for metric in metrics for row in _rows(recipes, metric)]
    fields = varying_fields([each.recipe for each in recipes])
    return Comparison(recipes, fields, [m for m in metrics if any(row.metric == m for row in rows)], rows)


def print_recipes(found: Comparison) -> None:
    """Prints the tables and the notes; on a terminal, tables have at most eight columns."""
    console = listing()
    limit = max(1, MAX_COLUMNS - 2 - len(found.metrics)) if console.is_terminal else None
    for sheet in (found.recipe_sheet(limit), found.test_sheet()):
        if sheet.rows:
            table = Table(*sheet.header, box=None, pad_edge=False, header_style="bold")
            for row in sheet.rows:
                table.add_row(*row)
            console.print(table)
            console.print()
    print_hidden(console, list(found.fields)[limit:] if limit else [])
    for line in found.notes():
        console.print(line, soft_wrap=True)


def interval_text(interval: Sequence[float], sign: str = "") -> str:
    """`0.8703 to 0.9697`; with the sign `+` also of positive numbers."""
    low, high = interval
    return f"{low:{sign}.4f} to {high:{sign}.4f}"


def _mean_text(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    deviation = found["standard_deviation"]
    return f"{found['mean']:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _test_texts(row: Row) -> list[str]:
    test = row.test
    p = "-" if row.p is None else significance.p_text(row.p)
    kind = (
        f"paired t, {test.seeds[0]} seeds" if test.paired else f"Welch's t, {test.seeds[0]} and {test.seeds[1]} seeds"
    )
    return [f"{test.difference:+.4f}", interval_text(test.interval, "+") if test.interval else "-", p, kind]


def _rows(recipes: Sequence[RecipeRuns], metric: str) -> list[Row]:
    first = recipes[0].values(metric)
    tests: list[TTest | None] = [None]
    for each in recipes[1:]:
        same = not differ_by_seed(recipes[0], each, SPLITS[metric.partition("/")[0]], unknown=True)
        tests.append(significance.t_test(each.values(metric), first, same))
    places = [number for number, test in enumerate(tests) if test and test.p is not None]
    adjusted = dict(zip(places, significance.holm([tests[number].p for number in places]), strict=True))
    return [
        Row(each, metric, spread(list(values.values())), tests[number], adjusted.get(number))
        for number, each in enumerate(recipes)
        if (values := each.values(metric))
    ]

"""Runs grouped by recipe, and whether their seeds have the same images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from resnet_cifar.config.diff import recipe_key
from resnet_cifar.config.schema import Recipe
from resnet_cifar.reporting import curves, evaluation_summary, prediction_arrays
from resnet_cifar.reporting.comparison_table import Run, unique_names
from resnet_cifar.reporting.curves import Curves

SPLITS = {"val": "validation", "test": "test"}  # prefix of a metric -> split
_OF_STUDY = re.compile(r"(seed|(?P<trial>trial))-\d+")  # run directories of seeds and searches
_NUMBER = re.compile(r"[-_.]*(seed)?[-_.]*\d+$")  # at the end of a run's name


class Images(NamedTuple):
    """Which images a split of a run has: the source's fingerprint and their positions in it, as bytes."""

    fingerprint: str
    positions: bytes


@dataclass(frozen=True)
class RecipeRuns:
    """The runs of one recipe that count: finished ones with different seeds, or all if none has finished.

    `left_out`: directory of a run of this recipe -> why it does not count.
    """

    name: str
    runs: tuple[Run, ...]
    left_out: dict[Path, str]

    @property
    def recipe(self) -> Recipe:
        """The recipe, with the seed of the first run."""
        return self.runs[0].recipe

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> result."""
        return {run.recipe.seed: run.result[metric] for run in self.runs if metric in run.result}

    @cached_property
    def images(self) -> dict[str, dict[int, Images | None]]:
        """Split -> seed -> its images; None if they are not known."""
        return {split: {run.recipe.seed: _images(run, split) for run in self.runs} for split in SPLITS.values()}

    def curves(self) -> list[Curves]:
        """The curves of the runs that have any."""
        found = (curves.read_curves(run.folder, run.recipe, []) for run in self.runs)
        return [each for each in found if each is not None]


def group_by_recipe(runs: Sequence[Run]) -> list[RecipeRuns]:
    """The recipes in the order of their first runs.

    Seeds in one directory are a group of their own, and so is every trial of a search: it was chosen by its result, so
    later runs of its recipe must not be averaged with it.
    """
    groups: dict[tuple[Path | None, str], list[Run]] = {}
    for run in runs:
        folder = run.folder.resolve()
        study = folder.parent if _OF_STUDY.fullmatch(folder.name) else None
        groups.setdefault((study, recipe_key(run.recipe)), []).append(run)
    return [_recipe_runs(*each) for each in zip(_names(list(groups.values())), groups.values(), strict=True)]


def is_trial(folder: Path) -> bool:
    """Whether it is the run directory of a search's trial, by its name."""
    found = _OF_STUDY.fullmatch(folder.resolve().name)
    return bool(found and found["trial"])


def image_sentence(runs: Iterable[Run], start: str = "The") -> str:
    """Says that runs of one recipe differ in their test images; empty if they do not. `start`: of the sentence."""
    runs = list(runs)
    if len({images for run in runs if (images := _images(run, "test"))}) < 2:
        return ""
    limit = runs[0].recipe.data.limit
    why = f" (data.limit {limit:,} draws them from the seed)" if limit else ""
    return f"{start} seeds differ in their test images{why}, so the spread of test results includes that of the images."


def differ_by_seed(first: RecipeRuns, second: RecipeRuns, split: str = "test", unknown: bool = False) -> bool:
    """Whether a seed that both recipes have stands for different images; `unknown`: the answer if these are unknown."""
    a, b = first.images[split], second.images[split]
    pairs = [(a[seed], b[seed]) for seed in a if seed in b]
    return any(unknown if one is None or other is None else one != other for one, other in pairs)


def _images(run: Run, split: str) -> Images | None:
    metrics = evaluation_summary.read_metrics(run.folder, split) if run.result else None
    positions = prediction_arrays.read_image_positions(run.folder / f"predictions-{split}.parquet")
    if metrics is None or positions is None or not metrics.get("fingerprint"):
        return None
    return Images(metrics["fingerprint"], positions.tobytes())


def _recipe_runs(name: str, runs: Sequence[Run]) -> RecipeRuns:
    finished = [run for run in runs if run.result]
    first: dict[int, Run] = {}
    left_out: dict[Path, str] = {}
    for run in finished or runs:
        if first.setdefault(run.recipe.seed, run) is not run:  # one more result of this seed would hide the spread
            left_out[run.folder] = f"seed {run.recipe.seed} again, as in {first[run.recipe.seed].folder}"
    left_out |= {run.folder: run.status.get("state", "claimed") for run in runs if finished and not run.result}
    return RecipeRuns(name, tuple(first.values()), left_out)


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each group: its run, the directory of its seeds, or what its runs are called apart from a number."""
    folders = [[run.folder.resolve() for run in runs] for runs in groups]
    places = list(map(_place, folders))
    return unique_names(places if len(set(places)) == len(places) else [each[0] for each in folders])


def _place(folders: Sequence[Path]) -> Path:
    stems = {folder.parent / _NUMBER.sub("", folder.name) for folder in folders}
    return stems.pop() if len(folders) > 1 and len(stems) == 1 else folders[0]

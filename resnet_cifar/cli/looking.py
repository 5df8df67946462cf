"""What looks at runs, sources and caches: report, explore and cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resnet_cifar.cli.arguments import positive_number, split_arguments
from resnet_cifar.cli.entry import print_once
from resnet_cifar.cli.help import show_help
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe


@dataclass(frozen=True)
class ReportCommand:
    """Write a run's page, or compare runs."""

    runs: tuple[str, ...]
    """Run folders."""
    out: str = "report-compare.html"
    """The page that compares several."""


@dataclass(frozen=True)
class ExploreCommand:
    """Write one page about the images of a source: balance, samples, statistics, copies, sizes and augmentations."""

    source: str
    """What data.source takes: a data set of the hub, a folder, a file, or `synthetic`."""
    recipe: str = "finetune"
    """The shipped recipe or YAML file that cuts the splits and augments."""
    out: str = ""
    """The page [default: explore-NAME.html here, after the source]."""


@dataclass(frozen=True)
class CacheCommand:
    """List the decoded data sets and, if asked to, clear some."""

    clear: str = ""
    """An entry, or `all`."""
    older_than: float = 0.0
    """Clear what was not used for so many days [default: none]."""


def report_command(arguments: list[str]) -> ReportCommand:
    """What `report ARGUMENTS` asks for. Ends the program after --help; raises UserError."""
    own, _, rest = split_arguments(arguments, values=("out",), flags=())
    if own.get("help"):
        print_once(
            "python -m resnet_cifar.cli.report RUN: writes RUN/report/index.html anew\n"
            "python -m resnet_cifar.cli.report RUN RUN ... [--out FILE]: what runs reached and where their recipes differ, "
            f"in a table and on a page [{ReportCommand.out}]"
        )
        raise SystemExit(0)
    if not rest:
        raise UserError("report takes run folders: python -m resnet_cifar.cli.report RUN RUN ...")
    if "out" in own and len(rest) == 1:
        raise UserError("--out is for a comparison, and a run's page lies in it: name more runs, or leave --out away")
    folders = [Path(word) for word in rest]
    _check_runs(folders)
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"report: {folder} is named twice, and a run is not compared with itself: name it once")
    return ReportCommand(tuple(rest), **own)


def explore_command(arguments: list[str]) -> tuple[ExploreCommand, Recipe]:
    """What `explore SOURCE ARGUMENTS` asks for, and its recipe. Ends the program after --help; raises UserError."""
    own, overrides, rest = split_arguments(arguments, values=("recipe", "out"), flags=())
    if own.pop("help", False):
        show_help(ExploreCommand, "python -m resnet_cifar.cli.explore", read_recipe("finetune"), alone="source")
    if len(rest) != 1:
        raise UserError(
            "explore takes one source: python -m resnet_cifar.cli.explore SOURCE [--recipe NAME|FILE] [--FIELD VALUE ...]"
        )
    if "data.source" in overrides:
        raise UserError(
            f"--data.source {overrides['data.source']} and {rest[0]} are both the source: leave the one away"
        )
    command = ExploreCommand(source=rest[0], **own)
    return command, read_recipe(command.recipe, {"data.source": command.source, **overrides})


def cache_command(arguments: list[str]) -> CacheCommand:
    """What `cache ARGUMENTS` asks for. Ends the program after --help; raises UserError."""
    own, overrides, rest = split_arguments(arguments, values=("clear", "older_than"), flags=())
    usage = "python -m resnet_cifar.cli.cache [--clear ENTRY|all] [--older-than DAYS]"
    if own.get("help"):
        print_once(
            f"{usage}: lists the decoded data sets; clears one, all, or those that were not used for so many days"
        )
        raise SystemExit(0)
    if rest or overrides:
        raise UserError(f"cache does not take {(rest or [*overrides])[0]!r}: {usage}")
    if "clear" in own and "older_than" in own:
        raise UserError(f"--clear and --older-than each say what to clear: give one of them ({usage})")
    days = positive_number("older_than", own["older_than"]) if "older_than" in own else 0.0
    return CacheCommand(clear=own.get("clear", ""), older_than=days)


def _check_runs(folders: list[Path]) -> None:
    for folder in folders:
        if not (folder / "recipe.yaml").is_file():
            raise UserError(f"{folder} is no run folder (it has no recipe.yaml): name a folder that train.py wrote")

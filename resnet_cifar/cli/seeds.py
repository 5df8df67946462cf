"""`resnet-cifar seeds RECIPE --seeds 0..4`: trains a recipe with several seeds, one after the other."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_cifar.atomic_io import write_json
from resnet_cifar.cli.parser import parse
from resnet_cifar.config.diff import fingerprint
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.rerun import how_to_resume
from resnet_cifar.config.schema import Recipe


@dataclass(frozen=True)
class SeedsOptions:
    """Train a recipe with several seeds, one after the other, and print mean, deviation and interval of the results.
    Rerun the same command to resume."""

    recipe: str
    """A shipped recipe or a YAML file."""
    seeds: str = "0..4"
    """A range (both ends included), or a list such as `0,3,7`."""
    run: str = ""
    """The directory of the seeds' run directories [default: runs/RECIPE-seeds-<8 hex digits of the recipe>]."""
    launch: str = "python"
    """The launcher of train.py, such as "accelerate launch --config_file accelerate_configs/multi_gpu.yaml"."""


def parse_arguments(arguments: list[str]) -> tuple[SeedsOptions, Recipe, list[str]]:
    """The options, the recipe, and the overrides as words for train.py. Exits after --help; raises UserError."""
    usage = "resnet-cifar seeds RECIPE --seeds 0..4 [--FIELD VALUE ...]"
    options, overrides = parse(SeedsOptions, usage, arguments, fields=("",))
    if "seed" in overrides:
        raise UserError(f"--seed {overrides['seed']} and --seeds are the same: give --seeds {overrides['seed']}")
    check_launcher(options.launch)
    return options, read_recipe(options.recipe, overrides), [f"--{path}={word}" for path, word in overrides.items()]


def check_launcher(launch: str) -> None:
    """Raises UserError if --launch is not a command."""
    try:
        words = shlex.split(launch)
    except ValueError:  # an unclosed quote
        words = []
    if not words:
        raise UserError(f"--launch cannot be {launch!r}: it should be a command, such as 'accelerate launch'")


def seed_numbers(word: str) -> list[int]:
    """The seeds of `0..4` (both ends included) or `0,3,7`, in that order. Raises UserError."""
    numbers: list[int] = []
    if ends := re.fullmatch(r"(\d+)\.\.(\d+)", word):
        numbers = list(range(int(ends[1]), int(ends[2]) + 1))
    elif re.fullmatch(r"\d+(,\d+)*", word):
        numbers = [int(number) for number in word.split(",")]
    if not numbers or len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds cannot be {word!r}: it should be FIRST..LAST, such as 0..4, or a list, such as 0,3,7")
    return numbers


def main(arguments: list[str]) -> None:
    """Trains the unfinished seeds and prints all results. Exits with 1 if one failed, 75 if interrupted."""
    options, recipe, words = parse_arguments(arguments)
    seeds = seed_numbers(options.seeds)

    from resnet_cifar.distributed.signals import EXIT_RESUBMIT
    from resnet_cifar.sweeps.seeds import summarize, train_seeds

    name = f"{Path(options.recipe).stem}-seeds-{fingerprint(dataclasses.replace(recipe, seed=0))}"
    home = Path(options.run) if options.run else Path("runs") / name
    states = train_seeds(home, seeds, recipe, ["--recipe", options.recipe, *words], options.launch)
    summary = summarize(home, states, recipe)
    _print(summary, recipe)
    _print_image_sentence([home / seed["run"] for seed in summary["seeds"].values() if seed["state"] == "finished"])
    if summary["spread"]:
        try:
            write_json(home / "seeds.json", {"recipe": options.recipe, "changes": words, **summary})
        except OSError as error:
            raise UserError(
                f"{home} cannot be written ({error.strerror}): free space, then {how_to_resume()}"
            ) from None
        print(f"written to {home / 'seeds.json'}", flush=True)
    if {"interrupted", "not run"} & set(states.values()):
        print(f"interrupted: {how_to_resume()} to resume", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_RESUBMIT)
    if failed := [str(seed) for seed, state in states.items() if state in ("failed", "killed")]:
        print(f"error: seed {', '.join(failed)} failed, see the error above", file=sys.stderr, flush=True)
        raise SystemExit(1)


def _print_image_sentence(folders: list[Path]) -> None:
    from resnet_cifar.reporting.comparison_table import read_runs
    from resnet_cifar.reporting.recipe_groups import image_sentence

    if sentence := image_sentence(read_runs(folders)):
        print(sentence, flush=True)


def _print(summary: dict[str, Any], recipe: Recipe) -> None:
    from rich.console import Console
    from rich.table import Table

    from resnet_cifar.reporting.seed_stats import metrics_of, summary_line

    metrics = metrics_of(recipe)
    table = Table("seed", "state", *metrics, box=None, pad_edge=False, header_style="bold")
    for seed, facts in summary["seeds"].items():
        table.add_row(seed, facts["state"], *(f"{facts[name]:.4f}" if name in facts else "-" for name in metrics))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for name, found in summary["spread"].items():
        console.print(summary_line(name, found), markup=False)

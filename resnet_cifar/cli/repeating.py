"""What trains a recipe many times: seeds and tune."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from resnet_cifar.cli.arguments import positive_integer, split_arguments
from resnet_cifar.cli.help import show_help
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe


@dataclass(frozen=True)
class SeedsCommand:
    """Train a recipe under several seeds, one after the other, and print mean, deviation and interval of the scores."""

    recipe: str
    """A shipped recipe or a YAML file."""
    seeds: str = "0..4"
    """`0..4` (both ends included), or `0,3,7`."""
    run: str = ""
    """The folder of the seeds' run folders [default: runs/RECIPE-seeds-<8 hex of the recipe>]."""
    launch: str = "python"
    """What starts train.py: `python`, or "accelerate launch --config_file accelerate_configs/multi_gpu.yaml"."""


@dataclass(frozen=True)
class TuneCommand:
    """Search a recipe's fields for the best validation accuracy. --FIELD LOW..HIGH, or --FIELD A,B,C, is searched."""

    recipe: str
    """A shipped recipe or a YAML file."""
    trials: int = 20
    """Trials of the whole search, failed ones too; more of them go on with it."""
    prune: int = 0
    """End a trial whose best score so far lies below the median of what finished trials had by then, once there are so
    many of these [default: never]."""
    run: str = ""
    """The search's folder, which several processes may share [default: runs/RECIPE-tune-<8 hex of recipe, ranges>]."""
    launch: str = "python"
    """What starts train.py: `python`, or "accelerate launch --config_file accelerate_configs/multi_gpu.yaml"."""


def seeds_command(arguments: list[str]) -> tuple[SeedsCommand, Recipe, list[str]]:
    """What `seeds RECIPE ARGUMENTS` asks for, its recipe, and the words that say so to train.py. Raises UserError."""
    own, overrides, rest = split_arguments(arguments, values=("seeds", "run", "launch"), flags=())
    if own.pop("help", False):
        show_help(SeedsCommand, "python -m resnet_cifar.sweeps.seeds", read_recipe("finetune"), alone="recipe")
    if len(rest) != 1:
        raise UserError(
            "seeds takes one recipe: python -m resnet_cifar.sweeps.seeds RECIPE --seeds 0..4 [--FIELD VALUE ...]"
        )
    if "seed" in overrides:
        raise UserError(f"--seed {overrides['seed']} and --seeds are the same thing: give --seeds {overrides['seed']}")
    command = SeedsCommand(recipe=rest[0], **own)
    _check_launch(command.launch)
    return command, read_recipe(command.recipe, overrides), [f"--{path}={word}" for path, word in overrides.items()]


def tune_command(arguments: list[str]) -> tuple[TuneCommand, dict[str, str]]:
    """What `tune RECIPE ARGUMENTS` asks for: the command, and field -> value, range or choices. Raises UserError."""
    own, overrides, rest = split_arguments(arguments, values=("trials", "prune", "run", "launch"), flags=())
    if own.pop("help", False):
        show_help(TuneCommand, "python -m resnet_cifar.sweeps.tune", read_recipe("finetune"), alone="recipe")
    if len(rest) != 1:
        raise UserError(
            "tune takes one recipe: python -m resnet_cifar.sweeps.tune RECIPE --phases.0.lr 1e-4..1e-1 --trials 20"
        )
    for name in ("trials", "prune"):
        if name in own:
            own[name] = positive_integer(name, own[name])
    command = TuneCommand(recipe=rest[0], **own)
    _check_launch(command.launch)
    return command, overrides


def _check_launch(launch: str) -> None:
    try:
        words = shlex.split(launch)
    except ValueError:  # a quote that is not closed
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

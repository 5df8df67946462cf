"""What each program is asked to do: its words, and the recipe they name. Imports nothing heavy."""

from resnet_cifar.commands.looking import (
    CacheCommand,
    ExploreCommand,
    ReportCommand,
    cache_command,
    explore_command,
    report_command,
)
from resnet_cifar.commands.repeating import SeedsCommand, TuneCommand, seed_numbers, seeds_command, tune_command
from resnet_cifar.commands.scoring import CHECKED, Changeable, EvalCommand, eval_command, target_recipe
from resnet_cifar.commands.training import TrainCommand, extended, train_command

__all__ = [
    "CHECKED",
    "CacheCommand",
    "Changeable",
    "EvalCommand",
    "ExploreCommand",
    "ReportCommand",
    "SeedsCommand",
    "TrainCommand",
    "TuneCommand",
    "cache_command",
    "eval_command",
    "explore_command",
    "extended",
    "report_command",
    "seed_numbers",
    "seeds_command",
    "target_recipe",
    "train_command",
    "tune_command",
]

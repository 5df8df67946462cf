"""Trains a recipe: `accelerate launch train.py [--recipe NAME|FILE] [--FIELD VALUE ...]`."""

from __future__ import annotations

from resnet_cifar.cli.arguments import positive_integer, positive_number, split_arguments
from resnet_cifar.cli.entry import print_once
from resnet_cifar.cli.help import show_help
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, recipe_names, recipe_summary
from resnet_cifar.config.options import TrainOptions
from resnet_cifar.config.schema import Recipe

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def train_command(arguments: list[str]) -> tuple[TrainOptions, Recipe]:
    """What `train.py ARGUMENTS` asks for. Ends the program after --help and --recipe list; raises UserError."""
    values = ("recipe", "run", "extend_epochs", "max_minutes", "profile_steps", "compile")
    own, overrides, rest = split_arguments(arguments, values, flags=("dry_run", "download_only", "restart"))
    if rest:
        raise UserError(f"{rest[0]!r} stands alone: fields are given as --FIELD VALUE")
    for name in ("extend_epochs", "max_minutes"):
        if name in own:
            own[name] = positive_number(name, own[name])
    if "profile_steps" in own:
        own["profile_steps"] = positive_integer("profile_steps", own["profile_steps"])
    if (mode := own.get("compile")) is not None and mode not in COMPILE_MODES:
        raise UserError(f"--compile {mode!r} is not a mode of torch.compile: take {', '.join(COMPILE_MODES)}")
    command = TrainOptions(**{name: value for name, value in own.items() if name != "help"})
    if command.recipe == "list":
        print_once("\n".join(f"{name:12} {recipe_summary(name)}" for name in recipe_names()))
        raise SystemExit(0)
    if own.get("help"):
        show_help(TrainOptions, "train.py", read_recipe(command.recipe))
    if command.extend_epochs and command.restart:
        raise UserError("--extend-epochs goes on with a run and --restart starts over: give one of them")
    return command, read_recipe(command.recipe, overrides)


def main(arguments: list[str]) -> None:
    """Nothing heavy is imported before the options and the recipe are checked and signals are handled."""
    options, recipe = train_command(arguments)

    from resnet_cifar.data.sources.registry import go_offline_if_unreachable
    from resnet_cifar.distributed.signals import StopSignals

    stop = StopSignals(options.max_minutes)
    go_offline_if_unreachable(recipe)

    if options.download_only:
        from resnet_cifar.training.preflight import download

        download(recipe)
        return

    from resnet_cifar.training.trainer import train

    train(recipe, options, stop)

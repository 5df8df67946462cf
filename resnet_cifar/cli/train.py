"""`resnet-cifar train`, which train.py runs too: trains a recipe."""

from __future__ import annotations

from resnet_cifar.cli.entry import print_once
from resnet_cifar.cli.parser import parse
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, recipe_names, recipe_summary
from resnet_cifar.config.schema import Recipe
from resnet_cifar.config.train_options import TrainOptions
from resnet_cifar.distributed.launcher_env import check_launcher

_USAGE = "resnet-cifar train [--recipe NAME|FILE] [OPTIONS] [--FIELD VALUE ...]"


def parse_arguments(arguments: list[str]) -> tuple[TrainOptions, Recipe]:
    """The options and the recipe. Exits after --help and --recipe list; raises UserError."""
    options, overrides = parse(TrainOptions, _USAGE, arguments, fields=("",))
    if options.recipe == "list":
        print_once("\n".join(f"{name:14} {recipe_summary(name)}" for name in recipe_names()))
        raise SystemExit(0)
    if options.extend_epochs and options.restart:
        raise UserError("--extend-epochs continues a run and --restart starts over: give one of them")
    return options, read_recipe(options.recipe, overrides)


def main(arguments: list[str]) -> None:
    """Nothing heavy is imported before the options and the recipe are checked and signals are handled."""
    options, recipe = parse_arguments(arguments)
    check_launcher()

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

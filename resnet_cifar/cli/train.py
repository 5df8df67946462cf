"""`resnet-cifar train`, which train.py runs too: trains a recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from resnet_cifar.atomic_io import read_json
from resnet_cifar.cli.entry import print_once
from resnet_cifar.cli.parser import parse
from resnet_cifar.cli.report import check_run
from resnet_cifar.config.diff import differences, to_dict
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe, recipe_names, recipe_summary, with_overrides
from resnet_cifar.config.schema import EarlyStopping, Recipe
from resnet_cifar.config.train_options import TrainOptions, extended
from resnet_cifar.distributed.launcher_env import check_launcher

_USAGE = "resnet-cifar train [--recipe NAME|FILE] [OPTIONS] [--FIELD VALUE ...]"


def parse_arguments(arguments: list[str]) -> tuple[TrainOptions, Recipe]:
    """The options and the recipe. Exits after --help and --recipe list; raises UserError."""
    options, overrides = parse(TrainOptions, _USAGE, arguments, fields=("",))
    if options.scaling and not options.dry_run:
        raise UserError(f"--scaling {options.scaling} is for the plan: add --dry-run")
    if options.scaling_devices and not options.scaling:
        raise UserError(
            f"--scaling-devices {options.scaling_devices} needs measurements: add --scaling DIR/scaling.json, which "
            "resnet-cifar scale writes"
        )
    if options.refit:
        first = Path(options.refit)
        for name in ("recipe", "extend-epochs"):
            if any(word.replace("_", "-").partition("=")[0] == f"--{name}" for word in arguments):
                raise UserError(f"--refit trains the recipe of {options.refit} as it is: remove --{name}")
        recipe = _refit_recipe(first, overrides)
        run = options.run or f"{first if first.name.strip('.') else first.resolve()}-refit"
        if Path(run).resolve() == first.resolve():
            raise UserError(f"--run {run} is the run that --refit reads: name another folder")
        return dataclasses.replace(options, run=run), recipe
    if options.recipe == "list":
        print_once("\n".join(f"{name:14} {recipe_summary(name)}" for name in recipe_names()))
        raise SystemExit(0)
    if options.extend_epochs and options.restart:
        raise UserError("--extend-epochs continues a run and --restart starts over: give one of them")
    return options, read_recipe(options.recipe, overrides)


def _refit_recipe(run: Path, overrides: dict[str, str]) -> Recipe:
    """The recipe that trains the finished run `run` again on its validation images too. Raises UserError."""
    check_run(run)
    recipe, result, start = read_recipe(str(run / "recipe.yaml")), read_json(run / "result.json"), f"--refit {run}"
    if recipe.refit_steps:
        raise UserError(
            f"{start} is a refit itself (refit_steps {recipe.refit_steps}): name a run with a validation split"
        )
    if recipe.data.overfit_images:
        raise UserError(
            f"{start}: the run validates on the images it trains on (data.overfit_images "
            f"{recipe.data.overfit_images}): name a run with a validation split"
        )
    if result is None:
        raise UserError(f"{start} is not finished, so nothing is selected yet: rerun its command first")
    if "val/accuracy" not in result:
        raise UserError(
            f"{start} was trained on all images, so nothing was selected: name a run with a validation split"
        )
    if not result["step"]:
        raise UserError(f"{start}: its linear probe was selected, so there are no updates to repeat: name another run")
    chosen = dataclasses.replace(
        recipe,
        refit_steps=result["step"],
        refit_of=run.resolve().name,
        evaluate=dataclasses.replace(recipe.evaluate, select_by="accuracy"),
        early_stopping=EarlyStopping(),
    )
    wanted = with_overrides(to_dict(chosen), overrides)
    same = dataclasses.replace(chosen, seed=wanted.seed, micro_batch=wanted.micro_batch)
    if changed := differences(wanted, same):
        field = changed[0].partition(":")[0]
        raise UserError(f"--{field} cannot change what --refit trains, the recipe of {run}: remove it")
    return wanted


def main(arguments: list[str]) -> None:
    """Nothing heavy is imported before the options and the recipe are checked and signals are handled."""
    options, recipe = parse_arguments(arguments)
    if options.check_for:
        from resnet_cifar.training.preflight import check_job

        check_job(extended(recipe, options.extend_epochs), options.check_for)
        return
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

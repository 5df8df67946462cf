"""`resnet-cifar scale --processes 1,2,4 --out DIR`: measures how a recipe's training step scales with devices."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from resnet_cifar.cli.parser import is_written_by, parse
from resnet_cifar.config.errors import UserError
from resnet_cifar.config.loading import read_recipe
from resnet_cifar.config.schema import Recipe
from resnet_cifar.distributed import launcher_env

_USAGE = "resnet-cifar scale --processes 1,2,4 --out DIR [--recipe NAME|FILE] [--FIELD VALUE ...]"
PAGE = "index.html"


@dataclass(frozen=True)
class ScaleOptions:
    """Measure the training step on several numbers of devices, and predict throughput, efficiency and cost on more.
    Writes DIR/scaling.json and DIR/index.html; a later call with the same recipe adds to them."""

    processes: str = ""
    """The numbers of processes, such as `1,2,4`, one per device; they are started here [default: powers of two up to
    this machine's devices]."""
    out: str = "scaling"
    """The directory of the results."""
    recipe: str = "finetune"
    """A shipped recipe or a YAML file; its batch is divided over the devices, and put on each as a whole."""
    seconds: float = 10.0
    """Seconds of each comparison: one per number of images, and the sizes of the all-reduce."""
    price: float = 0.0
    """The price of one device for an hour, in any currency [default: costs are device-hours alone]."""
    launched: bool = False
    """Measure the processes that a launcher has started, or this one alone, instead of starting some."""


def parse_arguments(arguments: list[str]) -> tuple[ScaleOptions, Recipe, list[str]]:
    """The options, the recipe, and its overrides as words. Exits after --help; raises UserError."""
    options, overrides = parse(ScaleOptions, _USAGE, arguments, fields=("",))
    if options.launched and options.processes:
        raise UserError(
            f"--processes {options.processes} starts processes, and --launched uses those that a launcher has started: "
            "remove one of them"
        )
    is_launched = launcher_env.by_elastic() or launcher_env.by_accelerate() or "WORLD_SIZE" in os.environ
    if is_launched and not options.launched:
        raise UserError(
            "resnet-cifar scale starts its processes by itself, and a launcher has started this one: run it without "
            "the launcher, or add --launched to measure the launched processes"
        )
    recipe = read_recipe(options.recipe, overrides)
    if not recipe.phases:
        raise UserError(f"--recipe {options.recipe} has no phases, so there is no step to measure: use another recipe")
    check_out(Path(options.out))
    return options, recipe, [f"--{path}={word}" for path, word in overrides.items()]


def process_counts(word: str) -> list[int]:
    """The ascending numbers of `1,2,4`. Raises UserError."""
    numbers = [int(number) for number in word.split(",")] if re.fullmatch(r"\d+(,\d+)*", word) else []
    if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise UserError(f"--processes cannot be {word!r}: it should be a list of different numbers, such as 1,2,4")
    return sorted(numbers)


def check_out(out: Path) -> None:
    """Raises UserError where the results cannot be written to `out`; leaves nothing behind."""
    place = out
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        trial = place / f".{secrets.token_hex(4)}"
        trial.touch()
        trial.unlink()
        page = out / PAGE
        is_foreign = page.is_file() and not is_written_by(page, "scale")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror}): name another folder") from None
    if is_foreign:
        raise UserError(f"--out {out} holds another {PAGE}, which is not a page of this command: name another folder")


def main(arguments: list[str]) -> None:
    """Measures each number of processes in turn, and writes the results after each."""
    options, recipe, words = parse_arguments(arguments)
    if options.launched:
        launcher_env.check_launcher()

        from resnet_cifar.distributed.signals import StopSignals, leave

        # It is also asked to stop when the process that has started it has ended.
        StopSignals().hand_over(lambda why: leave(f"stopped by {why}: what was measured before is in {options.out}"))

        from resnet_cifar.training import scaling_run

        scaling_run.measure_launched(recipe, Path(options.out), options.seconds, options.price)
        return

    from resnet_cifar.sweeps import scaling

    counts = process_counts(options.processes) if options.processes else scaling.possible_counts(recipe)
    scaling.check(recipe, counts, Path(options.out))
    settings = [f"--out={options.out}", f"--recipe={options.recipe}", f"--seconds={options.seconds}"]
    settings += [f"--price={options.price}"] * bool(options.price)
    scaling.measure_each(counts, [*settings, *words])
